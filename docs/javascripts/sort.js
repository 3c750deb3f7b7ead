// A table is sorted by a click on a cell of its head, or by Enter or the space bar there: numbers as numbers
// ("98.7 +- 0.4" by its first), words as words, empty cells last. The second time turns the order round. In a window as narrow as a phone's, a table that
// is wider has each row as a paragraph, its cells with their column's name.
const number = text => parseFloat(text.match(/[-+]?(\d*\.)?\d+(e[-+]?\d+)?/i)?.[0])
const textOf = (row, column) => row.cells[column]?.textContent.trim() ?? ""

function isNumeric(rows, column) {
  const texts = rows.map(row => textOf(row, column)).filter(Boolean)
  return texts.filter(text => /^[^a-z]{0,2}\d/i.test(text)).length > texts.length / 2
}

function sortTable(body, column, sign) {
  const rows = [...body.rows], numeric = isNumeric(rows, column)
  const empty = text => !text || (numeric && isNaN(number(text)))
  rows.sort((first, second) => {
    const [a, b] = [textOf(first, column), textOf(second, column)]
    if (empty(a) || empty(b)) return empty(a) - empty(b)
    return sign * (numeric ? number(a) - number(b) : a.localeCompare(b))
  })
  body.append(...rows)
}

function makeSortable(table) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells]
  for (const row of rows)
    for (const cell of row.cells) {
      cell.dataset.head = heads[cell.cellIndex]?.textContent.trim() ?? ""
      cell.toggleAttribute("data-figure", /^[-\d.]+( \+- [\d.]+)?$/.test(cell.textContent.trim()))
      if (cell.textContent.length > 40) cell.dataset.long = cell.textContent.length > 120 ? "very" : ""
    }
  if (rows.length < 3) return
  table.toggleAttribute("data-numbers", heads.some((_, column) => isNumeric(rows, column)))
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return
    Object.assign(head, { tabIndex: 0, title: "Sort by this column", ariaSort: "none" })
    const sort = () => {
      const up = head.ariaSort !== "ascending"
      for (const other of heads) if (other.ariaSort) other.ariaSort = "none"
      head.ariaSort = up ? "ascending" : "descending"
      sortTable(body, column, up ? 1 : -1)
    }
    head.addEventListener("click", sort)
    head.addEventListener("keydown", event => [" ", "Enter"].includes(event.key) && (event.preventDefault(), sort()))
  })
}

const tables = [...document.querySelectorAll(".md-typeset table:not([class])")].filter(t => t.tHead && t.tBodies[0])
tables.forEach(makeSortable)

function stackWideTables() {
  tables.forEach(table => table.removeAttribute("data-stacked"))
  const wide = innerWidth < 600 ? tables.filter(table => table.scrollWidth > table.closest("article").clientWidth) : []
  wide.forEach(table => table.setAttribute("data-stacked", ""))
}
stackWideTables()
addEventListener("resize", stackWideTables)
