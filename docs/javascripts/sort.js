// A table with a column of numbers, or of eight rows, is sorted by a click on a cell of its head, or by Enter or the space bar there: numbers as numbers
// ("98.7 +- 0.4" by its first), words as words, empty cells last. The second time turns the order round.
const number = text => parseFloat(text.match(/[-+]?(\d*\.)?\d+(e[-+]?\d+)?/i)?.[0])
const textOf = (row, column) => row.cells[column]?.textContent.trim() ?? ""

function isNumeric(rows, column) {
  const texts = rows.map(row => textOf(row, column)).filter(Boolean)
  return texts.filter(text => /^[^a-z]{0,2}\d/i.test(text)).length > texts.length / 2
}

function sortTable(table, column, sign) {
  const rows = [...table.tBodies[0].rows]
  const numeric = isNumeric(rows, column)
  const empty = text => !text || (numeric && isNaN(number(text)))
  rows.sort((first, second) => {
    const [a, b] = [textOf(first, column), textOf(second, column)]
    if (empty(a) || empty(b)) return empty(a) - empty(b)
    return sign * (numeric ? number(a) - number(b) : a.localeCompare(b))
  })
  table.tBodies[0].append(...rows)
}

for (const table of document.querySelectorAll(".md-typeset table:not([class])")) {
  const heads = [...(table.tHead?.rows[0]?.cells ?? [])]
  const rows = [...(table.tBodies[0]?.rows ?? [])]
  if (rows.length < 8 && !(rows.length > 2 && heads.some((_, column) => isNumeric(rows, column)))) continue
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return
    head.tabIndex = 0
    head.title = "Sort by this column"
    head.setAttribute("aria-sort", "none")
    const sort = () => {
      const up = head.getAttribute("aria-sort") !== "ascending"
      heads.forEach(other => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"))
      head.setAttribute("aria-sort", up ? "ascending" : "descending")
      sortTable(table, column, up ? 1 : -1)
    }
    head.addEventListener("click", sort)
    head.addEventListener("keydown", event => [" ", "Enter"].includes(event.key) && (event.preventDefault(), sort()))
  })
}
