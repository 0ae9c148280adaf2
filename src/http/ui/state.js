// What the router has answered last, and when. Every source is asked again after its time; if nothing answers, the page asks less
// and less often and says so.

/** The sources of the page: the path, and the time between two requests in milliseconds. */
const SOURCES = {
  status: { path: "ha/status", every: 2000 },
  views: { path: "ha/views", every: 2000 },
  leader: { path: "ha/leader", every: 2000 },
  workers: { path: "workers", every: 2000 },
  observed: { path: "ha/workers", every: 2000 },
  limitStats: { path: "ha/rate-limit/stats", every: 2000 },
  limits: { path: "ha/rate-limits", every: 10000 },
  policies: { path: "ha/policies", every: 10000 },
  routers: { path: "ha/routers", every: 10000 },
  config: { path: "ha/config", every: 60000 },
};

/** The longest time between two attempts while the router does not answer, in milliseconds. */
const LONGEST_PAUSE = 15000;

/** How much less often a page is updated that nobody sees. */
const HIDDEN_FACTOR = 5;

/** The age of the data from which on it is called old, in milliseconds. */
const OLD = 6000;

const state = {
  data: {},
  askedAt: {},
  /** The time of the last round in which anything answered. */
  answeredAt: 0,
  failures: 0,
  nextAt: 0,
  problem: "",
  needsKey: false,
  partial: "",
  timer: 0,
  running: false,
  again: false,
  onData: () => {},
  onNeedsKey: () => {},

  /** Asks all sources whose time has come; `all`: every one. */
  async refresh(all) {
    if (this.running) {
      this.again = this.again || Boolean(all);
      return;
    }
    clearTimeout(this.timer);
    this.running = true;
    const now = Date.now();
    // Timers of the browser may come some milliseconds early.
    const isDue = ([name, { every }]) => all || now - (this.askedAt[name] || 0) >= every - 100;
    const due = Object.entries(SOURCES).filter(isDue);
    const results = await Promise.all(due.map(([name, source]) => this.load(name, source.path)));
    this.running = false;
    this.judge(results);
    this.onData();
    if (this.again) {
      this.again = false;
      this.refresh(true);
      return;
    }
    this.schedule();
  },

  async load(name, source) {
    try {
      const value = await api.json(source);
      this.data[name] = value;
      this.askedAt[name] = Date.now();
      return { name, ok: true };
    } catch (error) {
      return { name, ok: false, error };
    }
  },

  judge(results) {
    const failed = results.filter((result) => !result.ok);
    const refused = failed.find(({ error }) => error instanceof Refused && (error.status === 401 || error.status === 403));
    this.needsKey = Boolean(refused);
    this.partial = failed.map(({ name, error }) => `${SOURCES[name].path}: ${reasonOf(error)}`).join("; ");
    if (results.some((result) => result.ok)) {
      this.answeredAt = Date.now();
      this.failures = 0;
      this.problem = "";
    } else if (failed.length > 0 && !refused) {
      this.failures += 1;
      this.problem = reasonOf(failed[0].error);
    }
    if (refused) this.onNeedsKey(refused.error);
  },

  schedule() {
    const base = Math.min(...Object.values(SOURCES).map(({ every }) => every));
    let pause = this.failures > 0 ? Math.min(base * 2 ** (this.failures - 1), LONGEST_PAUSE) : base;
    if (this.needsKey) pause = LONGEST_PAUSE;
    if (document.hidden) pause *= HIDDEN_FACTOR;
    this.nextAt = Date.now() + pause;
    this.timer = setTimeout(() => this.refresh(false), pause);
  },

  /** Asks again soon, because something has happened: several events in a row cause one round. */
  soon() {
    clearTimeout(this.timer);
    this.nextAt = Date.now() + 150;
    this.timer = setTimeout(() => this.refresh(true), 150);
  },
};
