// The events of the cluster: a stream of the router, read by `fetch`, because `EventSource` can't send a key. Below them stand
// the changes of workers, which this page notices when it compares two answers.

/** The most events that are kept. */
const MOST_EVENTS = 300;

/** The longest line of the stream, in characters. */
const LONGEST_LINE = 1 << 20;

/** The pauses before the stream is opened again, in milliseconds. */
const STREAM_PAUSES = [500, 1000, 2000, 5000, 10000];

const TONES = {
  ALIVE: "good", SUSPECTED: "warn", DOWN: "bad", LEAVING: "info", INIT: "info",
  ready: "good", pending: "info", draining: "info", sleeping: "info", not_ready: "bad", failed: "bad",
};

const events = {
  list: [],
  count: 0,
  state: { text: "connecting", chip: "idle" },
  failures: 0,
  abort: null,
  timer: 0,
  onEvent: () => {},
  onChange: () => {},

  add(kind, subject, details, at = new Date()) {
    this.count += 1;
    this.list.unshift({ number: this.count, at, kind, subject, details });
    this.list.length = Math.min(this.list.length, MOST_EVENTS);
    this.onChange();
  },

  /** Opens the stream, and opens it again whenever it ends. */
  async open() {
    clearTimeout(this.timer);
    this.abort?.abort();
    const abort = new AbortController();
    this.abort = abort;
    try {
      const response = await api.send("ha/events", { signal: abort.signal });
      this.show({ text: "live", chip: "good" });
      await readEvents(response.body, (name, data) => this.receive(name, data));
    } catch (error) {
      if (abort.signal.aborted) return;
      if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
        this.show({ text: "needs a key", chip: "warn" });
        return;
      }
    }
    if (abort.signal.aborted) return;
    this.show({ text: "interrupted", chip: "bad" });
    const pause = STREAM_PAUSES[Math.min(this.failures, STREAM_PAUSES.length - 1)];
    this.failures += 1;
    this.timer = setTimeout(() => this.open(), pause);
  },

  show(state) {
    if (this.state.text === state.text) return;
    this.state = state;
    this.onChange();
  },

  receive(name, data) {
    this.failures = 0;
    if (name === "routers") {
      this.onEvent(name, data);
      return;
    }
    const at = data.at ? new Date(data.at) : new Date();
    const change = (from, to) => [
      { text: from || "new", chip: TONES[from] || "idle" }, " → ", { text: to || "forgotten", chip: TONES[to] || "idle" },
    ];
    const about = {
      member: () => [data.name, [...change(data.from, data.to), ` ${data.address || ""}`]],
      self: () => ["this router", change(data.from, data.to)],
      refuted: () => ["this router", "refuted a suspicion against it"],
      reborn: () => ["this router", `goes on as generation ${data.generation}`],
      refused: () => ["this router", `was refused: ${data.reason}`],
      name_contested: () => ["this router", `another router has its name: ${data.address}`],
    };
    const [subject, details] = about[name] ? about[name]() : ["", shown(data)];
    this.add(name, String(subject), details, at);
    this.onEvent(name, data);
  },
};

/** Reads server-sent events until the stream ends. `take(name, data)` gets each event with its JSON. */
async function readEvents(stream, take) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let name = "message";
  let data = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r\n|\n|\r/);
    rest = lines.pop();
    if (rest.length > LONGEST_LINE) throw new SyntaxError("a line of the stream is too long");
    for (const line of lines) {
      if (line === "") {
        if (data.length > 0) take(name, JSON.parse(data.join("\n")));
        name = "message";
        data = [];
      } else if (line.startsWith("event:")) {
        name = line.slice(6).trim();
      } else if (line.startsWith("data:")) {
        data.push(line.slice(5).trimStart());
      }
    }
  }
}

/** Adds an event for each worker that differs from `before`, a map of states by id. Returns the new map. */
function noticeWorkers(before, workers) {
  const now = new Map(workers.map((worker) => [worker.id, { url: worker.url, state: worker.state }]));
  if (before) {
    for (const [id, { url, state }] of now) {
      const old = before.get(id)?.state;
      if (old === state) continue;
      const from = { text: old || "new", chip: TONES[old] || "idle" };
      events.add("worker", url, [from, " → ", { text: state, chip: TONES[state] || "idle" }]);
    }
    for (const [id, { url, state }] of before) {
      if (!now.has(id)) events.add("worker", url, [{ text: state, chip: TONES[state] || "idle" }, " → removed"]);
    }
  }
  return now;
}

function eventsTable() {
  return new Table({
    label: "Events",
    key: (event) => String(event.number),
    empty: "No event since the page was opened.",
    sort: "at",
    descending: true,
    columns: [
      { name: "at", label: "Time", kind: "tight mono", sort: (event) => event.number, cell: (event) => clockTime(event.at) },
      { name: "kind", label: "Event", kind: "tight", cell: (event) => event.kind },
      { name: "subject", label: "About", cell: (event) => event.subject },
      { name: "details", label: "What happened", kind: "wide", cell: (event) => event.details },
    ],
  });
}
