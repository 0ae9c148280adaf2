// What a person can do: give a key, act on a worker, ask why a worker would be picked, read the configuration.

/** Asks for the key. `reason`: why, for people. */
const keyDialog = {
  node: byId("key-dialog"),
  onKey: () => {},

  open(reason) {
    if (this.node.open) return;
    setText(byId("key-reason"), reason || "");
    setText(byId("key-error"), "");
    byId("key-input").value = "";
    byId("key-forget").disabled = !api.key;
    this.node.showModal();
    byId("key-input").focus();
  },

  /** Tries the key before it is kept. */
  async take() {
    const key = byId("key-input").value.trim();
    const error = byId("key-error");
    if (!/^[\x21-\x7e]+$/.test(key)) {
      setText(error, "A key is visible ASCII without blanks.");
      return;
    }
    try {
      await api.json("ha/status", { key });
    } catch (failure) {
      const refused = failure instanceof Refused && (failure.status === 401 || failure.status === 403);
      setText(error, refused ? `The router refuses this key: ${failure.message}` : `The key could not be tried: ${reasonOf(failure)}`);
      return;
    }
    api.setKey(key, byId("key-keep").checked);
    this.node.close();
    this.onKey();
  },

  forget() {
    api.setKey("", false);
    this.node.close();
    this.onKey();
  },

  start() {
    byId("key-button").addEventListener("click", () => this.open(""));
    byId("key-cancel").addEventListener("click", () => this.node.close());
    byId("key-forget").addEventListener("click", () => this.forget());
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.take();
    });
  },
};

/** The dialog of one worker: its facts, and with a key the actions on it. */
const workerDialog = {
  node: byId("worker-dialog"),
  id: null,
  row: null,
  onDone: () => {},

  open(row) {
    this.id = row.id;
    byId("worker-facts").replaceChildren();
    this.show(row);
    this.buildActions();
    this.node.showModal();
  },

  /** Shows the present state of the open worker; undefined: it is gone. */
  show(row) {
    if (!row) {
      setText(byId("worker-title"), `${this.row?.url || this.id}: not registered any more`);
      return;
    }
    this.row = row;
    setText(byId("worker-title"), row.url);
    facts(byId("worker-facts"), workerFacts(row));
    this.refreshActions();
  },

  refreshActions() {
    const { row } = this;
    for (const button of byId("worker-actions").querySelectorAll("button[data-needs]")) {
      const needs = button.dataset.needs;
      const is = { draining: row.state === "draining", override: Boolean(row.override) };
      button.disabled = needs.startsWith("!") ? is[needs.slice(1)] : !is[needs];
    }
  },

  buildActions() {
    const place = byId("worker-actions");
    if (!api.key) {
      const button = make("button", { type: "button" }, "Admin key…");
      button.addEventListener("click", () => {
        this.node.close();
        keyDialog.open("Actions on workers need an admin key.");
      });
      place.replaceChildren(make("p", "action", make("span", "note", "This page is read-only without an admin key."), button));
      return;
    }
    const result = make("p", { class: "note", role: "status" });
    const act = (words, method, segments, body) => async () => {
      setText(result, `${words}…`);
      try {
        await api.json(path("workers", this.id, ...segments), { method, body: body?.() });
        setText(result, `${words}: accepted.`);
      } catch (error) {
        setText(result, `${words}: refused. ${reasonOf(error)}`);
      }
      this.onDone();
    };
    const button = (text, attributes, press) => {
      const node = make("button", { type: "button", ...attributes }, text);
      node.addEventListener("click", press);
      return node;
    };
    const reason = make("input", { type: "text", maxlength: "200", "aria-label": "Reason of the override", placeholder: "Reason, for others" });
    const minutes = make("input", { type: "number", min: "1", max: "1440", value: "60", "aria-label": "Minutes until the override ends" });
    const override = (healthy) => act(`Override as ${healthy ? "healthy" : "unhealthy"}`, "POST", ["override"], () =>
      JSON.stringify({ healthy, reason: reason.value, ...(minutes.value ? { ttl_secs: 60 * Number(minutes.value) } : {}) }));
    const confirm = make("span", { class: "buttons", hidden: "" },
      make("strong", null, "Remove it from all routers? Requests in flight may finish until the drain deadline."),
      button("Remove", { class: "danger" }, () => {
        confirm.hidden = true;
        act("Remove", "DELETE", [])();
      }),
      button("Keep it", {}, () => {
        confirm.hidden = true;
        remove.focus();
      }));
    const remove = button("Remove…", { class: "danger" }, () => {
      confirm.hidden = false;
      confirm.querySelector("button:last-child").focus();
    });
    place.replaceChildren(
      make("div", "action",
        button("Drain", { "data-needs": "!draining" }, act("Drain", "POST", ["drain"])),
        button("Undrain", { "data-needs": "draining" }, act("Undrain", "DELETE", ["drain"])),
        make("span", "note", "A draining worker gets no new requests and stays registered.")),
      make("div", "action", reason, make("label", null, minutes, " minutes"),
        button("Override as unhealthy", {}, override(false)),
        button("Override as healthy", {}, override(true)),
        button("Lift the override", { "data-needs": "override" }, act("Lift the override", "DELETE", ["override"]))),
      make("div", "action", remove, confirm),
      result,
    );
    this.refreshActions();
  },

  start() {
    byId("worker-close").addEventListener("click", () => this.node.close());
    this.node.addEventListener("close", () => {
      this.id = null;
    });
  },
};

/** The dialog of one limit. */
const limitDialog = {
  node: byId("limit-dialog"),
  key: null,

  open(row) {
    byId("limit-facts").replaceChildren();
    this.key = `${row.id} ${row.at}`;
    this.show(row);
    this.node.showModal();
  },

  show(row) {
    if (!row) return;
    setText(byId("limit-title"), `Limit ${row.id}`);
    facts(byId("limit-facts"), limitFacts(row));
  },

  start() {
    byId("limit-close").addEventListener("click", () => this.node.close());
    this.node.addEventListener("close", () => {
      this.key = null;
    });
  },
};

/** The settings of this router, without secrets. */
function configTable() {
  return new Table({
    label: "Configuration",
    key: (row) => row.name,
    empty: "The router shows no settings.",
    columns: [
      { name: "name", label: "Setting", kind: "mono", cell: (row) => row.name },
      { name: "value", label: "Value", kind: "wide mono", cell: (row) => (row.value === null ? { text: "not set", class: "muted" } : Array.isArray(row.value) ? row.value.join(", ") || NONE : shown(row.value)) },
      { name: "source", label: "From", cell: (row) => (row.source === "default" ? { text: "default", class: "muted" } : row.source) },
      { name: "group", label: "Group", cell: (row) => row.group },
    ],
  });
}

/** The form for /ha/explain. It is shown only if the router has this path. */
const explainForm = {
  panel: null,
  link: null,
  table: null,

  build(made) {
    this.panel = made.node;
    this.link = made.link;
    this.hide(true);
    this.body = make("textarea", { "aria-label": "Body of the request", spellcheck: "false" });
    this.result = make("div", { id: "explain-result", "aria-live": "polite" });
    const form = make("form", null, this.body, make("p", "buttons", make("button", { type: "submit", class: "main" }, "Explain")));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    made.node.append(form, this.result);
  },

  /** Fills the form in with a request for a model, unless a person has written one. */
  suggest(model) {
    if (this.body.value === "" && model !== undefined) {
      this.body.value = JSON.stringify({ model, messages: [{ role: "user", content: "Hello" }] }, null, 2);
    }
  },

  hide(hidden) {
    this.panel.hidden = hidden;
    this.link.hidden = hidden;
  },

  /** Finds out whether the router has the path: an empty body is refused there, but not with 404. */
  async probe() {
    try {
      await api.json("ha/explain", { method: "POST", body: "{}" });
      this.hide(false);
    } catch (error) {
      this.hide(!(error instanceof Refused) || [404, 405, 501].includes(error.status) || error.status >= 500);
    }
  },

  async ask() {
    this.result.replaceChildren(make("p", "body note", "Asking…"));
    try {
      this.show(await api.json("ha/explain", { method: "POST", body: this.body.value }));
    } catch (error) {
      this.result.replaceChildren(make("p", "body error", reasonOf(error)));
    }
  },

  /** Shows the fields of an answer as a list, and its candidates as a table. */
  show(answer) {
    const isTable = (value) => Array.isArray(value) && value.length > 0 && value.every((one) => one && typeof one === "object");
    const name = ["candidates", "workers"].find((one) => isTable(answer[one]));
    const summary = make("div", "body");
    facts(summary, Object.entries(answer).filter(([field]) => field !== name).map(([field, value]) => [field.replaceAll("_", " "), shown(value)]));
    this.result.replaceChildren(summary);
    if (name) this.result.append(candidatesTable(answer[name]).node);
  },
};

/** A table with a column for each field of the candidates, the address first. */
function candidatesTable(candidates) {
  const fields = new Set(["url", ...candidates.flatMap((one) => Object.keys(one))].filter((field) => candidates.some((one) => field in one)));
  const table = new Table({
    label: "Candidates",
    key: (row) => String(row.at),
    empty: "No worker is a candidate.",
    columns: [...fields].map((name) => ({
      name,
      label: name.replaceAll("_", " "),
      kind: candidates.every((one) => typeof one[name] === "number") ? "number" : undefined,
      sort: ({ one }) => (typeof one[name] === "number" ? one[name] : shown(one[name])),
      cell: ({ one }) => shown(one[name]),
    })),
  });
  table.update(candidates.map((one, at) => ({ one, at })));
  return table;
}
