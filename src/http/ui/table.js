// Tables that are sorted by the buttons in their heads and filtered by a search field. Rows and cells that do not change stay
// the same elements, so that focus, selection and scrolling stay where they are and 200 rows cost little.

const COLLATOR = new Intl.Collator("en", { numeric: true });

class Table {
  /**
   * `columns`: objects with `name`, `label`, `cell(row)` (a content) and, if wanted, `sort(row)` (a number or a text; without it
   * the text of the cell), `kind` (number, tight, wide), `help`. The first column heads its row.
   * `key(row)`: the identity of a row. `press(action, row)`: called for the buttons of cells.
   */
  constructor({ label, columns, key, empty, press, sort, descending }) {
    this.columns = columns;
    this.key = key;
    this.empty = empty;
    this.sortBy = sort || null;
    this.descending = Boolean(descending);
    this.rows = [];
    this.known = new Map();
    this.words = [];
    this.heads = columns.map((column) => this.head(column));
    this.tbody = make("tbody");
    this.emptyNote = make("p", "empty");
    const head = make("thead", null, make("tr", null, ...this.heads));
    this.table = make("table", { "aria-label": label }, head, this.tbody);
    this.node = make("div", { class: "box", tabindex: "0", role: "region", "aria-label": `Table: ${label}` });
    this.node.append(this.table, this.emptyNote);
    this.tbody.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-press]");
      const row = button && this.known.get(button.closest("tr").dataset.key);
      if (row && press) press(button.dataset.press, row.data, button);
    });
    this.showOrder();
  }

  head(column) {
    const th = make("th", { scope: "col", class: column.kind === "number" ? "number" : undefined });
    const button = make("button", { type: "button", title: column.help });
    button.append(column.label, make("span", { class: "arrow", "aria-hidden": "true" }));
    button.addEventListener("click", () => this.order(column.name));
    th.append(button);
    return th;
  }

  /** A search field for this table. */
  search(label) {
    const input = make("input", { type: "search", placeholder: "Filter", "aria-label": label });
    input.addEventListener("input", () => {
      this.words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      this.draw();
    });
    return input;
  }

  order(name) {
    this.descending = this.sortBy === name && !this.descending;
    this.sortBy = name;
    this.showOrder();
    this.draw();
  }

  showOrder() {
    this.columns.forEach((column, at) => {
      const is = column.name === this.sortBy;
      const order = this.descending ? "descending" : "ascending";
      this.heads[at].setAttribute("aria-sort", is ? order : "none");
      setText(this.heads[at].querySelector(".arrow"), is ? (this.descending ? "▼" : "▲") : "");
    });
  }

  update(rows) {
    this.rows = rows;
    this.draw();
  }

  draw() {
    const prepared = this.rows.map((data) => {
      const cells = this.columns.map((column) => column.cell(data));
      return { data, key: this.key(data), cells, text: cells.map(plain).join(" ").toLowerCase() };
    });
    const shownRows = prepared.filter((row) => this.words.every((word) => row.text.includes(word)));
    this.sort(shownRows);
    this.place(shownRows);
    const none = this.rows.length === 0 ? this.empty : shownRows.length === 0 ? "No row matches the filter." : "";
    setText(this.emptyNote, none);
    this.emptyNote.hidden = none === "";
    this.table.hidden = this.rows.length === 0;
  }

  sort(rows) {
    const at = this.columns.findIndex((column) => column.name === this.sortBy);
    if (at < 0) return;
    const { sort } = this.columns[at];
    const value = sort ? (row) => sort(row.data) : (row) => plain(row.cells[at]);
    const sign = this.descending ? -1 : 1;
    const values = new Map(rows.map((row) => [row, value(row)]));
    rows.sort((a, b) => {
      const [x, y] = [values.get(a), values.get(b)];
      const [noX, noY] = [x === null || x === undefined, y === null || y === undefined];
      // Rows without a value are last in both orders.
      if (noX || noY) return noX - noY || COLLATOR.compare(a.key, b.key);
      const order = typeof x === "number" && typeof y === "number" ? x - y : COLLATOR.compare(x, y);
      return sign * order || COLLATOR.compare(a.key, b.key);
    });
  }

  place(rows) {
    const stay = new Set(rows.map((row) => row.key));
    for (const [key, row] of this.known) {
      if (!stay.has(key)) {
        row.tr.remove();
        this.known.delete(key);
      }
    }
    let next = this.tbody.firstElementChild;
    for (const row of rows) {
      let known = this.known.get(row.key);
      if (!known) {
        known = this.newRow(row.key);
        this.known.set(row.key, known);
      }
      known.data = row.data;
      row.cells.forEach((content, at) => fill(known.cells[at], content));
      if (known.tr === next) {
        next = next.nextElementSibling;
      } else {
        this.tbody.insertBefore(known.tr, next);
      }
    }
  }

  newRow(key) {
    const tr = make("tr");
    tr.dataset.key = key;
    const cells = this.columns.map((column, at) => {
      const cell = at === 0 ? make("th", { scope: "row" }) : make("td");
      if (column.kind) cell.classList.add(...column.kind.split(" "));
      tr.append(cell);
      return cell;
    });
    return { tr, cells, data: null };
  }
}

/** A panel with a title, a note and a body. Panels are the sections of the page, and each has its link in the bar. */
function panel(id, title, note, ...tools) {
  const heading = make("h2", { id: `${id}-title` }, title);
  const count = make("span", "muted");
  heading.append(" ", count);
  const noteNode = make("p", "note", note || "");
  const head = make("header", null, heading, noteNode, ...tools);
  const node = make("section", { id, class: "panel", "aria-labelledby": `${id}-title` }, head);
  const link = make("a", { href: `#${id}` }, title);
  byId("main").append(node);
  byId("sections").append(link);
  return { node, count, note: noteNode, link };
}

/** A panel with a table that can be filtered. */
function tablePanel(id, title, note, table, ...tools) {
  const made = panel(id, title, note, ...tools, table.search(`Filter ${title.toLowerCase()}`));
  made.node.append(table.node);
  return made;
}
