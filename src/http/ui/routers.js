// Routers, who sees whom, leases and stores.

const HEALTH_TONES = {
  ok: "good", degraded: "warn", joining: "info", leaving: "info", refused: "bad", failed: "bad",
};

/** The names of the listed routers, in the order of people. */
function routerNames(data) {
  const names = new Set((data.status?.nodes || []).map((node) => node.name));
  return [...names].sort(COLLATOR.compare);
}

/** What a router says of itself and the others; undefined: it has not answered. */
function viewOf(data, name) {
  return data.views?.views?.[name]?.view;
}

/** A router for each row of the table: as this router lists it, and with what that router says of itself. */
function routerRows(data) {
  const own = data.status?.node_name;
  const peers = new Map((viewOf(data, own)?.health?.peers || []).map((peer) => [peer.name, peer]));
  const urls = new Map((data.routers?.routers || []).map((router) => [router.name, router.url]));
  return (data.status?.nodes || []).map((node) => {
    const asked = data.views?.views?.[node.name];
    return {
      ...node,
      isSelf: node.name === own,
      peer: peers.get(node.name),
      url: urls.get(node.name),
      view: asked?.view,
      error: asked?.error,
      leads: data.leader?.leader === node.name,
    };
  });
}

function connections(row) {
  if (row.isSelf) return [{ text: "this router", class: "muted" }];
  const all = Object.entries(row.peer?.connections || {});
  if (all.length === 0) return NONE;
  return all.map(([name, { up, seconds, error }]) => ({
    text: `${name} ${up ? "up" : "down"}`,
    chip: up ? "good" : "bad",
    title: `${up ? "up" : "down"} for ${span(seconds)}${error ? `: ${error}` : ""}`,
  }));
}

function routersTable() {
  return new Table({
    label: "Routers",
    key: (row) => `${row.name} ${row.generation}`,
    empty: "No router is known yet.",
    sort: "name",
    columns: [
      { name: "name", label: "Router", cell: (row) => row.name },
      {
        name: "state", label: "State", help: "As this router sees it",
        cell: (row) => ({ text: row.status, chip: TONES[row.status] || "idle" }),
      },
      { name: "since", label: "Since", kind: "number", sort: (row) => row.status_seconds, cell: (row) => span(row.status_seconds) },
      {
        name: "health", label: "Says of itself", kind: "wide",
        cell: (row) => {
          if (!row.view) return { text: row.error || "not asked yet", class: "muted" };
          const { status, reasons } = row.view.health;
          const mode = row.leads ? { text: "leader", chip: "info" } : { text: row.view.health.ha_mode, chip: "idle" };
          return [{ text: status, chip: HEALTH_TONES[status] || "idle" }, mode, ` ${reasons.join("; ")}`];
        },
      },
      { name: "version", label: "Version", kind: "tight", cell: (row) => row.view?.version || NONE },
      {
        name: "rtt", label: "Round trip", kind: "number", help: "Of the last answered probe of this router",
        sort: (row) => row.peer?.rtt_ms, cell: (row) => (row.peer?.rtt_ms ? `${row.peer.rtt_ms.toFixed(1)} ms` : NONE),
      },
      {
        name: "lag", label: "Lag", kind: "number", help: "Writes of this router that the other one has not acknowledged",
        sort: (row) => row.peer?.lag,
        cell: (row) => (row.peer?.lag ? { text: number(row.peer.lag), chip: "warn" } : row.peer ? number(row.peer.lag) : NONE),
      },
      {
        name: "clock", label: "Clock ahead", kind: "number", help: "Of this router's clock",
        sort: (row) => row.peer?.clock_ahead_ms,
        cell: (row) => (row.peer?.clock_ahead_ms === undefined || row.peer.clock_ahead_ms === null
          ? NONE : `${number(row.peer.clock_ahead_ms)} ms`),
      },
      { name: "connections", label: "Connections", kind: "tight", cell: connections },
      { name: "address", label: "Mesh address", kind: "tight mono", cell: (row) => row.address },
      {
        name: "url", label: "Client address", kind: "tight mono",
        cell: (row) => (row.url ? { text: row.url, link: `${row.url.replace(/\/$/, "")}/ui`, title: "The page of this router" } : NONE),
      },
    ],
  });
}

/** One column for each router: the table is built again when the routers change. */
function matrixTable(names) {
  return new Table({
    label: "Who sees whom",
    key: (row) => row.name,
    empty: "No router has answered yet.",
    sort: "observer",
    columns: [
      { name: "observer", label: "Seen by", sort: (row) => row.name, cell: (row) => row.name },
      ...names.map((name) => ({ name: `of ${name}`, label: name, kind: "tight", cell: (row) => seenState(row, name) })),
    ],
  });
}

function seenState(row, name) {
  if (!row.view) {
    return row.name === name ? NONE : { text: "no answer", class: "muted", title: row.error };
  }
  const { node, peers } = row.view.health;
  if (row.name === name) return [{ text: `itself ${node.status}`, chip: TONES[node.status] || "idle" }];
  const peer = peers.find((one) => one.name === name);
  if (!peer) return { text: "unknown", chip: "bad", title: "It does not list this router" };
  const extra = [peer.rtt_ms ? `${peer.rtt_ms.toFixed(1)} ms` : "", peer.lag ? `lag ${peer.lag}` : ""];
  return [
    { text: peer.status, chip: TONES[peer.status] || "idle", title: `for ${span(peer.status_seconds)}` },
    { text: extra.filter(Boolean).join(", "), class: "muted" },
  ];
}

function leaseRows(data) {
  const { leader } = data;
  if (!leader) return [];
  return [{ ...leader, name: "cluster leader" }];
}

function leasesTable() {
  return new Table({
    label: "Leases",
    key: (row) => row.name,
    empty: "Not loaded yet.",
    columns: [
      { name: "name", label: "Lease", cell: (row) => row.name },
      { name: "holder", label: "Holder", cell: (row) => (row.leader ? { text: row.leader, chip: "good" } : { text: "none", chip: "bad" }) },
      { name: "term", label: "Term", kind: "number", sort: (row) => row.term, cell: (row) => String(row.term) },
      {
        name: "quorum", label: "Majority reached", help: "By this router",
        cell: (row) => [
          { text: row.quorum ? "yes" : "no", chip: row.quorum ? "good" : "bad" },
          ` ${row.majority} of ${Math.max(row.voters.length, row.majority)} needed`,
        ],
      },
      { name: "mode", label: "This router", cell: (row) => row.ha_mode },
      { name: "voters", label: "Voters", kind: "wide", cell: (row) => row.voters.join(", ") },
      { name: "url", label: "Holder's address", kind: "mono", cell: (row) => row.leader_url || NONE },
    ],
  });
}

/** The stores of this router, each with whether the others hold the same. */
function storeRows(data) {
  const own = data.status?.node_name;
  return Object.entries(data.status?.stores || {}).map(([name, store]) => {
    const same = [];
    const differ = [];
    for (const [router, { view }] of Object.entries(data.views?.views || {})) {
      const digest = view?.drift?.digests?.[name];
      if (router === own || !digest) continue;
      (digest === viewOf(data, own)?.drift?.digests?.[name] ? same : differ).push(router);
    }
    return { name, ...store, same, differ };
  });
}

function storesTable() {
  return new Table({
    label: "Stores",
    key: (row) => row.name,
    empty: "Not loaded yet.",
    sort: "name",
    columns: [
      { name: "name", label: "Store", cell: (row) => row.name },
      { name: "entries", label: "Rows", kind: "number", sort: (row) => row.entry_count, cell: (row) => number(row.entry_count) },
      { name: "bytes", label: "Size", kind: "number", sort: (row) => row.bytes, cell: (row) => bytes(row.bytes) },
      { name: "tombstones", label: "Removed", kind: "number", help: "Removals that are still remembered", sort: (row) => row.tombstones, cell: (row) => number(row.tombstones) },
      { name: "digest", label: "Digest", kind: "mono tight", cell: (row) => row.digest },
      {
        name: "equal", label: "Other routers", help: "Whether their digests were equal when they were asked. Counts and loads move all the time.",
        cell: (row) => {
          if (row.differ.length > 0) return [{ text: "differs", chip: "warn" }, row.differ.join(", ")];
          return row.same.length > 0 ? { text: `equal on ${row.same.length}`, chip: "good" } : NONE;
        },
      },
      { name: "writers", label: "Writers", kind: "number", sort: (row) => Object.keys(row.versions).length, cell: (row) => ({ text: number(Object.keys(row.versions).length), title: Object.entries(row.versions).map(([writer, version]) => `${writer}: ${version}`).join("\n") }) },
      { name: "sync", label: "Last sync", kind: "tight", sort: (row) => (row.last_sync ? Date.parse(row.last_sync) : null), cell: (row) => (row.last_sync ? clockTime(row.last_sync) : NONE) },
    ],
  });
}

/** What a person should look at, the worst first. */
function attention(data) {
  const bad = [];
  const warn = [];
  const rows = routerRows(data);
  const known = new Set(rows.map((row) => `${row.name} is ${row.status}`));
  for (const row of rows) {
    if (row.status === "DOWN") bad.push([row.name, `is DOWN for ${span(row.status_seconds)}`]);
    else if (row.status !== "ALIVE") warn.push([row.name, `is ${row.status} for ${span(row.status_seconds)}`]);
    // Whether keys go from router to router is a setting, and stands in the table.
    else if (row.error && !row.error.includes("asks for a key")) warn.push([row.name, `does not show its view: ${row.error}`]);
    const health = row.view?.health;
    // That another router is DOWN stands in that router's own line.
    const reasons = (health?.reasons || []).filter((reason) => !known.has(reason));
    if (health && health.status !== "ok" && (reasons.length > 0 || health.reasons.length === 0)) {
      (["refused", "failed"].includes(health.status) ? bad : warn).push([row.name, `${health.status}: ${reasons.join("; ")}`]);
    }
    if (row.view?.draining) warn.push([row.name, "drains and will end"]);
  }
  if (data.leader && !data.leader.quorum) bad.push([data.leader.ha_mode, "this router reaches no majority of the routers"]);
  else if (data.leader && !data.leader.leader) warn.push(["no leader", "no router leads the cluster at the moment"]);
  const out = workerRows(data).filter((row) => row.routed === false && row.state !== "draining");
  for (const row of out.slice(0, 5)) {
    bad.push(["worker", `${row.url} gets no requests: ${row.state}${row.failure ? `, ${row.failure.cause}` : ""}`]);
  }
  if (out.length > 5) bad.push(["workers", `${out.length - 5} more get no requests`]);
  const tone = (chip) => ([name, text]) => ({ name, text, chip });
  return [...bad.map(tone("bad")), ...warn.map(tone("warn"))];
}
