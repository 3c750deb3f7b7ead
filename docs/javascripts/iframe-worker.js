// A page opened as a file may start no Worker, and the search of the site runs in one. This gives it an iframe instead,
// with the three functions that it uses: addEventListener, postMessage, importScripts.
if (location.protocol === "file:")
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inner = frame.contentWindow
      const load = source => new Promise((done, failed) => {
        const script = inner.document.createElement("script")
        Object.assign(script, { src: source, onload: done, onerror: failed })
        inner.document.body.append(script)
      })
      inner.importScripts = (...sources) =>
        sources.reduce((before, source) => before.then(() => load(new URL(source, url).href)), Promise.resolve())
      inner.postMessage = data => setTimeout(() => this.dispatchEvent(new MessageEvent("message", { data })))
      this.ready = load(url)
      this.inner = inner
    }
    postMessage(data) {
      this.ready.then(() => this.inner.dispatchEvent(new this.inner.MessageEvent("message", { data })))
    }
  }
