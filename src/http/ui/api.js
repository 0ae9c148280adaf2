// Requests to the router. All addresses are relative to the page, so that a prefix of the path stays. The key is held in a
// variable, and in the storage of this tab only if the person wants that; it is sent as a header and never part of an address.

const STORED_KEY = "smg-admin-key";

/** How long one request may take, in milliseconds. */
const REQUEST_TIMEOUT = 8000;

/** The largest answer whose text is shown as an error, in characters. */
const LONGEST_ERROR = 600;

/** The router, or something before it, answered with another status than success. */
class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

const api = {
  key: readStoredKey(),

  /** Sets the key; `keep`: until the tab is closed. An empty key is none. */
  setKey(key, keep) {
    this.key = key;
    try {
      if (key && keep) sessionStorage.setItem(STORED_KEY, key);
      else sessionStorage.removeItem(STORED_KEY);
    } catch {
      // Storage is disabled: the key is in memory only.
    }
  },

  /** Sends a request and returns the response, whose status is success. */
  async send(path, { method = "GET", body, signal, key = this.key } = {}) {
    const headers = { accept: "application/json, text/event-stream" };
    if (key) headers["x-api-key"] = key;
    if (body !== undefined) headers["content-type"] = "application/json";
    const response = await fetch(path, {
      method,
      headers,
      signal,
      body,
      cache: "no-store",
      redirect: "error",
      referrerPolicy: "no-referrer",
    });
    if (!response.ok) throw await refusal(response);
    return response;
  },

  /** Sends a request and reads the JSON of its answer. */
  async json(path, options = {}) {
    const response = await this.send(path, { signal: AbortSignal.timeout(REQUEST_TIMEOUT), ...options });
    return response.json();
  },
};

function readStoredKey() {
  try {
    return sessionStorage.getItem(STORED_KEY) || "";
  } catch {
    return "";
  }
}

/** The error in an answer. The router's own errors are JSON; a proxy answers with something else. */
async function refusal(response) {
  const text = (await response.text().catch(() => "")).slice(0, LONGEST_ERROR);
  try {
    const { error } = JSON.parse(text);
    if (typeof error?.message === "string") return new Refused(response.status, error.code, error.message);
  } catch {
    // Not JSON.
  }
  const words = response.statusText ? `${response.status} ${response.statusText}` : String(response.status);
  return new Refused(response.status, null, `status ${words}`);
}

/** An error for people. */
function reasonOf(error) {
  if (error instanceof Refused) return error.message;
  if (error.name === "TimeoutError" || error.name === "AbortError") return "no answer in time";
  if (error instanceof SyntaxError) return "the answer is not JSON";
  return "no connection";
}

function path(...segments) {
  return segments.map((segment, at) => (at === 0 ? segment : encodeURIComponent(segment))).join("/");
}
