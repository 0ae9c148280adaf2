// Puts the page together and keeps it up to date.

const attentionPanel = panel("attention", "Attention", "");
const attentionList = make("ul", { "aria-live": "polite" });
attentionPanel.node.append(attentionList);

const routers = { table: routersTable() };
routers.panel = tablePanel("routers", "Routers", "", routers.table);

const matrix = { names: "", table: null };
matrix.panel = panel("views", "Who sees whom", "Each router's own view of the others, with round trip and unacknowledged writes.");

const workers = { table: workersTable((_, row) => workerDialog.open(row)), before: null, by: null };
workers.panel = tablePanel("workers", "Workers", "", workers.table);

const policies = { table: policiesTable() };
policies.panel = tablePanel("policies", "Policies", "", policies.table);

const limits = { table: limitsTable((_, row) => limitDialog.open(row)) };
limits.panel = tablePanel("limits", "Limits", "", limits.table);

const leases = { table: leasesTable() };
leases.panel = panel("leases", "Leases", "");
leases.panel.node.append(leases.table.node);

const stores = { table: storesTable() };
stores.panel = tablePanel("stores", "Stores", "The shared state in this router.", stores.table);

const tail = { table: eventsTable() };
tail.panel = tablePanel("events", "Events", "", tail.table);

explainForm.build(panel("explain", "Explain", "Which worker would get this request, and why? Nothing is sent to a worker."));

const config = { table: configTable(), all: make("input", { type: "checkbox" }) };
config.panel = tablePanel("configuration", "Configuration", "As the router was started.", config.table, make("label", "check", config.all, " defaults too"));
config.file = make("pre", "body");
config.panel.node.append(config.file);
config.all.addEventListener("change", () => drawConfig());

function drawConfig() {
  const settings = state.data.config?.settings || [];
  const given = settings.filter((setting) => setting.source !== "default");
  config.table.update(config.all.checked ? settings : given);
  setText(config.panel.count, `${given.length} set of ${settings.length}`);
  const { workers: listed = [], rate_limits: rules = [] } = state.data.config || {};
  const tables = { ...(listed.length > 0 ? { workers: listed } : {}), ...(rules.length > 0 ? { rate_limits: rules } : {}) };
  setText(config.file, Object.keys(tables).length > 0 ? JSON.stringify(tables, null, 1) : "");
  config.file.hidden = Object.keys(tables).length === 0;
}

function drawAttention(data) {
  const items = attention(data);
  const loaded = data.status && data.workers;
  const shownItems = items.length > 0 || !loaded ? items : [{ name: "all well", text: "every router is ALIVE, every worker is routed", chip: "good" }];
  while (attentionList.children.length > shownItems.length) attentionList.lastElementChild.remove();
  shownItems.forEach(({ name, text, chip }, at) => {
    const item = attentionList.children[at] || attentionList.appendChild(make("li"));
    fill(item, [{ text: name, chip }, text]);
  });
  setText(attentionPanel.count, items.length > 0 ? String(items.length) : "");
}

function drawMatrix(data) {
  const names = routerNames(data);
  const signature = JSON.stringify(names);
  if (matrix.names !== signature) {
    matrix.names = signature;
    matrix.table?.node.remove();
    matrix.table = matrixTable(names);
    matrix.panel.node.append(matrix.table.node);
  }
  const rows = new Map(routerRows(data).map((row) => [row.name, row]));
  matrix.table.update([...rows.values()]);
}

function count(rows, good, word) {
  return rows.length === 0 ? "" : `${rows.filter(good).length} of ${rows.length} ${word}`;
}

function draw() {
  const { data } = state;
  setText(byId("cluster"), data.status ? `${data.status.cluster ? `cluster ${data.status.cluster}` : "one router"} · ${data.status.node_name}` : "");
  document.title = data.status ? `${data.status.node_name} · smg cluster` : "smg cluster";
  setText(byId("key-button"), api.key ? "Admin key: given" : "Admin key…");
  drawAttention(data);
  const routerList = routerRows(data);
  routers.table.update(routerList);
  setText(routers.panel.count, count(routerList, (row) => row.status === "ALIVE", "alive"));
  setText(routers.panel.note, data.status ? `State, round trip and lag as ${data.status.node_name} sees them.` : "");
  drawMatrix(data);
  const workerList = workerRows(data);
  workers.table.update(workerList);
  setText(workers.panel.count, count(workerList, (row) => row.routed, "routed"));
  setText(workers.panel.note, api.key ? "" : "Read-only without an admin key.");
  if (workerDialog.id) workerDialog.show(workerList.find((row) => row.id === workerDialog.id));
  policies.table.update(policyRows(data));
  const limitList = limitRows(data);
  limits.table.update(limitList);
  setText(limits.panel.note, divided(data.limits?.divided_among));
  if (limitDialog.key) limitDialog.show(limitList.find((row) => `${row.id} ${row.at}` === limitDialog.key));
  leases.table.update(leaseRows(data));
  stores.table.update(storeRows(data));
  explainForm.suggest(workerList.flatMap((row) => row.models || []).find((model) => model !== "*"));
  drawConfig();
  drawFreshness();
}

function divided(among) {
  if (!among) return "";
  return `Divided among ${among.routers.join(", ")}${among.is_settled ? "" : " (not settled yet)"}.`;
}

/** How old the data is, and whether the router answers. */
function drawFreshness() {
  const note = byId("freshness");
  const now = Date.now();
  const passed = state.answeredAt ? now - state.answeredAt : null;
  const old = passed !== null && passed > (document.hidden ? OLD * HIDDEN_FACTOR : OLD);
  note.classList.toggle("late", old || state.failures > 0 || state.partial !== "");
  if (passed === null) setText(note, state.needsKey ? "The router asks for a key." : state.failures > 0 ? "No data yet." : "Loading…");
  else setText(note, `Data of ${clockTime(new Date(state.answeredAt)).text}, ${age(passed / 1000)} old${state.partial ? `; not all of it: ${state.partial}` : ""}`);
  const isOut = state.failures > 0;
  byId("outage").hidden = !isOut;
  document.body.classList.toggle("outdated", isOut);
  if (isOut) {
    const since = state.answeredAt ? `What is shown is ${age(passed / 1000)} old.` : "";
    const wait = Math.max(0, Math.round((state.nextAt - now) / 1000));
    // The count-down is outside the alert, because a screen reader would read each second of it.
    setText(byId("outage-text"), `This router does not answer: ${state.problem}.`);
    setText(byId("retry"), `Try now (in ${wait} s anyway)`);
    byId("retry").title = since;
  }
}

state.onData = () => {
  // Behind a load balancer, two answers of two routers may differ although nothing has changed.
  const by = state.data.status?.node_name;
  if (by !== workers.by) workers.before = null;
  workers.by = by;
  if (state.data.workers) workers.before = noticeWorkers(workers.before, workerRows(state.data));
  draw();
};
let hasAsked = false;
state.onNeedsKey = (error) => {
  // The dialog opens by itself once; later the button in the bar opens it.
  if (!hasAsked) keyDialog.open(api.key ? `The router refuses the key: ${error.message}` : "This router asks for a key.");
  hasAsked = true;
};
events.onEvent = () => state.soon();
events.onChange = () => {
  tail.table.update(events.list);
  fill(tail.panel.count, events.state);
};
keyDialog.onKey = () => {
  hasAsked = false;
  draw();
  state.soon();
  events.open();
  explainForm.probe();
};
workerDialog.onDone = () => state.soon();
byId("retry").addEventListener("click", () => state.refresh(true));
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) state.soon();
});

for (const dialog of [keyDialog, workerDialog, limitDialog]) dialog.start();
events.onChange();
draw();
state.refresh(true);
events.open();
explainForm.probe();
setInterval(drawFreshness, 1000);
