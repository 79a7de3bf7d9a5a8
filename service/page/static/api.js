// Talks to the service this page came from: JSON, errors in its shape, server-sent events over POST.

const KEY = "vbon-key";
// The service's own address: a proxy may serve it below a path.
const BASE = new URL("..", import.meta.url);

/** The address of one of the service's paths, such as "/modes". */
export function located(path) {
  return new URL(path.replace(/^\//, ""), BASE).href;
}

/**
 * What went wrong, as the server tells it.
 *
 * `type`: the server's (`overloaded`, `invalid_input`, ...), or `network` (nobody answers), `broken` (the
 * answer ended early) or `aborted` (given up here). `param`: the field at fault. `retryAfter`: seconds.
 */
export class ApiError extends Error {
  constructor(message, { type, status = 0, param = null, retryAfter = null, requestId = null }) {
    super(message);
    this.name = "ApiError";
    Object.assign(this, { type, status, param, retryAfter, requestId });
  }
}

/** Fires `failed` (detail: the ApiError) whenever something went wrong, but for what was given up here. */
export const apiEvents = new EventTarget();

export function apiKey() {
  return sessionStorage.getItem(KEY);
}

/** Keeps a key for this tab, or forgets it. */
export function setApiKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** GET, the JSON of the answer. */
export function get(path, { signal } = {}) {
  return asJson(path, { signal });
}

/** GET what changes now and then: `{etag, body}`, where `known` is returned if it has not changed since. */
export async function getChanged(path, known) {
  const headers = known ? { "if-none-match": known.etag } : {};
  const response = await send(path, { headers, cache: "no-store" });
  if (response.status === 304) return known;
  return { etag: response.headers.get("etag"), body: await response.json() };
}

/** POST a JSON body, the JSON of the answer. */
export function post(path, body, { signal } = {}) {
  return asJson(path, { ...sending("POST", body), signal });
}

/** Any method, with or without a JSON body; the JSON of the answer, or null where it is empty. */
export function request(method, path, body, { signal } = {}) {
  return asJson(path, { ...sending(method, body), signal });
}

/**
 * POST a JSON body and follow the events of the answer: `for await (const {event, data} of stream(...))`.
 *
 * Ends with the stream; an `error` event is thrown as an ApiError. Leaving the loop, or aborting the
 * signal, closes the connection, and the server stops its work.
 */
export async function* stream(path, body, { signal } = {}) {
  const response = await send(path, { ...sending("POST", body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const parser = new EventParser();
  try {
    while (true) {
      const { done, value } = await reader.read().catch((error) => {
        throw failed(error, "broken", "the connection broke off before the answer was whole");
      });
      if (done) return;
      for (const message of parser.push(value)) {
        if (message.event === "error") throw told(message.data, response);
        yield message;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Cuts text into events as it comes; comments are skipped. */
export class EventParser {
  #rest = "";

  /** The events that are whole by now: `{event, data}`, data parsed as JSON. */
  push(text) {
    const blocks = (this.#rest + text).replaceAll("\r\n", "\n").split("\n\n");
    this.#rest = blocks.pop();
    return blocks.map(parsed).filter((message) => message !== null);
  }
}

function parsed(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon <= 0) continue;
    const value = line.slice(colon + 1).replace(/^ /, "");
    if (line.startsWith("event:")) event = value;
    else if (line.startsWith("data:")) data.push(value);
  }
  return data.length ? { event, data: JSON.parse(data.join("\n")) } : null;
}

function sending(method, body) {
  if (body === undefined) return { method };
  const headers = { "content-type": "application/json" };
  return { method, headers, body: JSON.stringify(body) };
}

async function asJson(path, options) {
  const response = await send(path, options);
  const text = await response.text().catch((error) => {
    throw failed(error, "broken", "the connection broke off before the answer was whole");
  });
  return text ? JSON.parse(text) : null;
}

async function send(path, options) {
  const key = apiKey();
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(located(path), { ...options, headers });
  } catch (error) {
    throw failed(error, "network", "the server does not answer");
  }
  if (response.ok || response.status === 304) return response;
  throw told(await response.json().catch(() => null), response);
}

function told(body, response) {
  const said = body?.error ?? {};
  const seconds = Number(response.headers.get("retry-after"));
  return announced(said.message ?? `the server answered with status ${response.status}`, {
    type: said.type ?? "unknown",
    status: response.status,
    param: said.param ?? null,
    retryAfter: seconds > 0 ? seconds : null,
    requestId: said.request_id ?? response.headers.get("x-request-id"),
  });
}

function failed(error, type, message) {
  if (error.name === "AbortError") return new ApiError("stopped", { type: "aborted" });
  return announced(message, { type });
}

function announced(message, details) {
  const error = new ApiError(message, details);
  apiEvents.dispatchEvent(new CustomEvent("failed", { detail: error }));
  return error;
}
