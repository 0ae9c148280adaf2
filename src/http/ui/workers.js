// Workers, policies and limits.

/** Workers as the page shows them: the answers of /workers and /ha/workers, and the failures that other routers have seen. */
function workerRows(data) {
  const seen = new Map((data.observed?.workers || []).map((worker) => [worker.id, worker]));
  const views = Object.entries(data.views?.views || {});
  return (data.workers?.workers || []).map((worker) => {
    const observed = seen.get(worker.id);
    const failures = views
      .filter(([, { view }]) => view?.failures?.[worker.id])
      .map(([router, { view }]) => ({ router, ...view.failures[worker.id] }));
    if (worker.last_error && !failures.some(({ router }) => router === data.status?.node_name)) {
      failures.push({ router: data.status?.node_name || "this router", ...worker.last_error });
    }
    failures.sort((a, b) => Date.parse(b.at) - Date.parse(a.at));
    return {
      ...worker,
      url: worker.spec?.url || worker.url || worker.id,
      routed: observed?.routed,
      observations: observed?.observations || {},
      wait: observed?.expected_wait_seconds ?? null,
      waitingTokens: observed?.waiting_tokens ?? null,
      hit: observed?.prompt_tokens > 0 ? observed.cached_tokens / observed.prompt_tokens : null,
      promptTokens: observed?.prompt_tokens || 0,
      load: observed?.load ?? worker.load,
      failures,
      failure: failures[0],
    };
  });
}

/** One router's verdict on a worker as a word and a tone. */
function verdict({ health, breaker, serving }) {
  if (breaker === "open") return ["breaker open", "bad"];
  if (health === "unhealthy") return ["unhealthy", "bad"];
  if (breaker === "half_open") return ["half-open", "warn"];
  if (health === "healthy") return ["healthy", "good"];
  return serving ? ["serving", "good"] : ["not probed", "idle"];
}

/** The most routers that are all named beside their verdict; of more, those are named whose verdict is bad. */
const MOST_NAMES = 5;

/** The verdicts of all routers: each verdict with the routers that have come to it. */
function verdicts({ observations }) {
  const all = Object.entries(observations).sort(([a], [b]) => COLLATOR.compare(a, b));
  const groups = new Map();
  for (const [router, seen] of all) {
    const [text, chip] = verdict(seen);
    const group = groups.get(text) || { chip, routers: [] };
    group.routers.push(router);
    groups.set(text, group);
  }
  if (groups.size === 0) return NONE;
  return [...groups].flatMap(([text, { chip, routers }]) => {
    const named = all.length <= MOST_NAMES || chip === "bad" || chip === "warn";
    return [{ text, chip, title: routers.join(", ") }, named ? `${routers.join(", ")} ` : `${routers.length} routers `];
  });
}

function failureContent(failure, withRouter) {
  if (!failure) return NONE;
  const status = failure.status ? ` ${failure.status}` : "";
  const by = withRouter ? `, seen by ${failure.router}` : "";
  return [
    { text: `${failure.cause}${status}`, chip: "bad" },
    `${failure.error || ""} `,
    { text: `${failure.path || ""} ${ago(failure.at)}${by}`, class: "muted" },
  ];
}

function workerState(row) {
  const content = [{ text: row.state, chip: TONES[row.state] || "idle" }];
  if (row.routed === false) content.push({ text: "not routed", chip: "bad", title: "This router sends no requests to it" });
  if (row.override) content.push({ text: `override: ${row.override.healthy ? "healthy" : "unhealthy"}`, chip: "warn", title: row.override.reason });
  return content;
}

function models(list) {
  if (list === null || list === undefined) return { text: "not known yet", class: "muted" };
  return list.map((model) => (model === "*" ? "any model" : model)).join(", ");
}

function workersTable(press) {
  return new Table({
    label: "Workers",
    key: (row) => row.id,
    empty: "No worker is registered.",
    sort: "url",
    press,
    columns: [
      { name: "url", label: "Worker", sort: (row) => row.url, cell: (row) => ({ text: row.url, press: "open", title: `Details and actions of ${row.id}` }) },
      { name: "state", label: "State", cell: workerState },
      { name: "models", label: "Models", cell: (row) => models(row.models) },
      { name: "verdicts", label: "Verdicts", help: "Of every router", kind: "wide", cell: verdicts },
      { name: "load", label: "Load", kind: "number", help: "Requests in flight, of all routers", sort: (row) => row.load, cell: (row) => number(row.load) },
      {
        name: "wait", label: "Wait", kind: "number", help: "Expected time to the first token of a short request, as this router has learnt the worker's speed",
        sort: (row) => row.wait, cell: (row) => (row.wait === null ? NONE : span(row.wait)),
      },
      {
        name: "hit", label: "Hit rate", kind: "number", help: "Share of the prompt tokens of this router's requests that were in the worker's cache, as the worker reports it",
        sort: (row) => row.hit, cell: (row) => (row.hit === null ? NONE : { text: percent(row.hit), title: `of ${number(row.promptTokens)} prompt tokens` }),
      },
      {
        name: "latency", label: "Latency", kind: "number", help: "Average time to the head of a response",
        sort: (row) => row.head_latency_seconds, cell: (row) => (row.head_latency_seconds ? span(row.head_latency_seconds) : NONE),
      },
      { name: "failure", label: "Last failure", kind: "wide", sort: (row) => row.failure?.cause, cell: (row) => failureContent(row.failure, true) },
    ],
  });
}

/** The facts of a worker's dialog. */
function workerFacts(row) {
  const routers = Object.entries(row.observations).sort(([a], [b]) => COLLATOR.compare(a, b));
  return [
    ["Id", { text: row.id, class: "mono" }],
    ["State", workerState(row)],
    ["Gets requests", row.routed === undefined ? "–" : row.routed ? "yes" : "no"],
    ["Override", row.override ? `${row.override.healthy ? "healthy" : "unhealthy"}: ${row.override.reason}${row.override.seconds_left ? `, for ${span(row.override.seconds_left)} more` : ""}` : "none"],
    ["Models", models(row.models)],
    ["Load", `${number(row.load)} requests in flight, ${number(row.in_flight)} of them of this router; ${number(row.waitingTokens)} prompt tokens wait`],
    ["Expected wait", row.wait === null ? "not known: no answer has shown the worker's speed" : span(row.wait)],
    ["Hit rate", row.hit === null ? "not known: the worker has not reported cached tokens" : `${percent(row.hit)} of ${number(row.promptTokens)} prompt tokens`],
    ...routers.map(([router, seen]) => {
      const [text, chip] = verdict(seen);
      const latency = seen.head_latency_seconds ? `, ${span(seen.head_latency_seconds)} to the head of a response` : "";
      return [`Seen by ${router}`, [{ text, chip }, `${number(seen.in_flight)} in flight, breaker ${seen.breaker}${latency}`]];
    }),
    ...row.failures.map((failure) => [
      `Failure at ${failure.router}`,
      [...failureContent(failure, false), failure.advice ? ` ${failure.advice}` : null],
    ]),
    ["Spec", { text: JSON.stringify(row.spec, null, 1), class: "mono" }],
  ];
}

function policyRows(data) {
  const { policies } = data;
  if (!policies) return [];
  const workers = workerRows(data);
  const serving = (model) => workers.filter(({ models: list }) => list?.includes(model) || list?.includes("*"));
  const names = new Set([...Object.keys(policies.models), ...Object.keys(policies.set)]);
  const rows = [...names].map((model) => {
    const by = serving(model);
    return {
      model, policy: policies.models[model] || policies.default, set: policies.set[model],
      workers: by.length, routed: by.filter((row) => row.routed).length,
    };
  });
  return [{ model: "", policy: policies.default, workers: null, routed: null }, ...rows];
}

function policiesTable() {
  return new Table({
    label: "Policies",
    key: (row) => row.model,
    empty: "Not loaded yet.",
    sort: "model",
    columns: [
      { name: "model", label: "Model", sort: (row) => row.model, cell: (row) => (row.model === "" ? { text: "all others (default)", class: "muted" } : row.model) },
      { name: "policy", label: "Policy", cell: (row) => row.policy },
      { name: "by", label: "From", cell: (row) => (row.set ? { text: "an administrator", chip: "info" } : "labels or configuration") },
      {
        name: "workers", label: "Workers routed", kind: "number", sort: (row) => row.routed,
        cell: (row) => (row.workers === null ? NONE : { text: `${row.routed} of ${row.workers}`, chip: row.routed === 0 && row.workers > 0 ? "bad" : "idle" }),
      },
      { name: "parameters", label: "Parameters", kind: "wide mono", cell: (row) => (row.set ? shown({ ...row.set.parameters, ...(row.set.weights && Object.keys(row.set.weights).length > 0 ? { weights: row.set.weights } : {}) }) : NONE) },
    ],
  });
}

/** A row for each limit of each rule: what it promises, and what is used. */
function limitRows(data) {
  const stats = new Map((data.limitStats?.rules || []).map((rule) => [rule.id, rule]));
  return (data.limits?.rules || []).flatMap((rule) =>
    rule.promises.map((promise, at) => {
      const used = stats.get(rule.id)?.limits?.[at];
      return {
        id: rule.id, at, rule, promise, used,
        rejected: stats.get(rule.id)?.rejected_total ?? rule.rejected_total,
        top: used?.subjects?.[0],
      };
    }));
}

function matches(match) {
  if (typeof match === "string") return match;
  const parts = Object.entries(match || {}).map(([name, value]) => `${name}=${shown(value)}`);
  return parts.length === 0 ? "all requests" : parts.join(", ");
}

function limitsTable(press) {
  return new Table({
    label: "Limits",
    key: (row) => `${row.id} ${row.at}`,
    empty: "No limit is set.",
    sort: "id",
    press,
    columns: [
      { name: "id", label: "Limit", sort: (row) => row.id, cell: (row) => ({ text: row.id, press: "open", title: "What it promises, and its subjects" }) },
      { name: "match", label: "Counts together", cell: (row) => matches(row.rule.match) },
      { name: "limit", label: "Limit", kind: "number", sort: (row) => row.promise.limit, cell: (row) => `${number(row.promise.limit)} ${row.promise.kind} / ${span(row.promise.window_ms / 1000)}` },
      { name: "mode", label: "Mode", cell: (row) => [row.rule.mode, row.rule.shadow ? { text: "shadow", chip: "info", title: "Counts and rejects nothing" } : null] },
      { name: "bound", label: "Bound", kind: "number", help: "The most that all routers together admit in a window, whatever fails", sort: (row) => row.promise.bound, cell: (row) => (row.promise.bound === null ? { text: "none", chip: "warn" } : number(row.promise.bound)) },
      {
        name: "used", label: "Used most", kind: "number", help: "In the present window, by the subject that has used most",
        sort: (row) => row.top?.used ?? 0,
        cell: (row) => {
          if (!row.top) return { text: "0", class: "muted" };
          const share = row.promise.limit > 0 ? row.top.used / row.promise.limit : 1;
          return { text: `${number(row.top.used)} (${percent(share)})`, chip: share >= 1 ? "bad" : share >= 0.8 ? "warn" : "idle", title: row.top.subject };
        },
      },
      { name: "rights", label: "Rights here", kind: "number", help: "What this router may still admit for that subject", sort: (row) => row.top?.rights_here, cell: (row) => (row.top ? shown(row.top.rights_here) : NONE) },
      { name: "subjects", label: "Subjects", kind: "number", sort: (row) => row.used?.subject_count ?? 0, cell: (row) => number(row.used?.subject_count ?? 0) },
      { name: "rejected", label: "Rejected", kind: "number", help: "By this router, since its start", sort: (row) => row.rejected, cell: (row) => number(row.rejected) },
    ],
  });
}

function limitFacts(row) {
  const subjects = row.used?.subjects || [];
  return [
    ["Counts together", matches(row.rule.match)],
    ["Promise", row.promise.explanation.join(" ")],
    ["Shares of the routers", shown(row.promise.shares)],
    ["Rejected by this router", number(row.rejected)],
    ...subjects.slice(0, 50).map((subject) => [
      subject.subject || "all requests",
      `${number(subject.used)} used (${number(subject.used_here)} here${Object.entries(subject.used_elsewhere).map(([router, used]) => `, ${number(used)} at ${router}`).join("")}), `
        + `rights here ${shown(subject.rights_here)}, lent ${number(subject.lent)}, granted ${number(subject.granted)}`,
    ]),
  ];
}
