/**
 * How a call is sent, and when it is sent again. The rules are those of docs/calling.md of the service.
 */
import { NoResponse, type OrderNumbersError, Refused, refusalOf, UnexpectedResponse } from "./errors.js";

export interface ClientOptions {
  /** For a call with all its attempts, in milliseconds: none starts later. When absent, 30,000. */
  readonly deadlineMs?: number;
  /** For one attempt, in milliseconds. When absent, 10,000. */
  readonly attemptMs?: number;
  /** In place of the global `fetch`, for example for a proxy. */
  readonly fetch?: typeof fetch;
}

export interface CallOptions {
  /** Ends the call. It then throws `signal.reason`. A write may have been carried out. */
  readonly signal?: AbortSignal;
  /** For this call, in place of the client's. */
  readonly deadlineMs?: number;
}

export interface WriteOptions extends CallOptions {
  /** That of an earlier call, to send that one again. When absent, a new one. */
  readonly idempotencyKey?: string;
}

interface Call {
  readonly method: string;
  readonly path: string;
  readonly query?: object;
  readonly body?: object;
  readonly isWrite?: boolean;
  /** Whether the result is the whole response, and not only its `data`. */
  readonly isWhole?: boolean;
}

const NOT_SENT = ["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "UND_ERR_CONNECT_TIMEOUT"];
const PASSES = [429, 503, 504];
/**
 * No earlier attempt was carried out either. The service refuses such a request always, whatever its state, or it has
 * looked the idempotency key up before.
 */
const NOT_DONE = [
  "INVALID_INPUT",
  "PAYLOAD_TOO_LARGE",
  "UNSUPPORTED_MEDIA_TYPE",
  "VALIDATION_FAILED",
  "NOT_FOUND",
  "INSUFFICIENT_CREDIT",
  "INSUFFICIENT_INVENTORY",
  "LIMIT_EXCEEDED",
  "IDEMPOTENCY_KEY_REUSED",
];
const UNCLEAR = ["TIMEOUT", "IDEMPOTENCY_IN_PROGRESS"];
const PAUSE_MS = 1_000;
const SPREAD_MS_MAX = 30_000;
/** A timer with more ends at once. */
const TIMER_MS_MAX = 2 ** 31 - 1;
const BASE_URL = /^https?:\/\/[^\s/?#@:][^\s/?#@]*(\/[^\s?#]*)?$/i;
const VISIBLE = /^[!-~]+$/;
const HEADER_VALUE = /^([!-~]+([ \t]+[!-~]+)*)?$/;

/** Sends calls, and sends them again where that may help. */
export class Transport {
  readonly #baseUrl: string;
  readonly #apiKey: string;
  readonly #options: Required<ClientOptions>;

  /** Throws RangeError for a URL or an API key that no request can have. */
  constructor(baseUrl: string, apiKey: string, options: ClientOptions = {}) {
    // The texts have neither value: the API key is secret, and a caller may have swapped the two.
    if (!BASE_URL.test(baseUrl))
      throw new RangeError("baseUrl must be http:// or https:// with a host, without a user, query or fragment");
    if (!VISIBLE.test(apiKey)) throw new RangeError("apiKey must be visible ASCII characters");
    this.#baseUrl = baseUrl.replace(/\/+$/, "");
    this.#apiKey = apiKey;
    this.#options = {
      deadlineMs: options.deadlineMs ?? 30_000,
      attemptMs: options.attemptMs ?? 10_000,
      fetch: options.fetch ?? globalThis.fetch,
    };
  }

  protected async send<T>(call: Call, options: WriteOptions): Promise<T> {
    const ends = performance.now() + (options.deadlineMs ?? this.#options.deadlineMs);
    const idempotencyKey = call.isWrite ? (options.idempotencyKey ?? crypto.randomUUID()) : undefined;
    if (!HEADER_VALUE.test(idempotencyKey ?? ""))
      throw new RangeError("idempotencyKey must be visible ASCII characters");
    let mayBeDone = options.idempotencyKey !== undefined; // then it may be an earlier call, sent again
    for (let count = 0; ; count++) {
      options.signal?.throwIfAborted();
      const left = Math.min(this.#options.attemptMs, ends - performance.now());
      const outcome = await this.#attempt<T>(call, idempotencyKey, Math.max(1, left), options.signal);
      if ("result" in outcome) return outcome.result;
      const { error } = outcome;
      const code = error instanceof Refused ? error.code : undefined;
      mayBeDone ||= !isNotSent(error) && (code === undefined || UNCLEAR.includes(code));
      error.idempotencyKey = idempotencyKey;
      error.isOutcomeUnknown = call.isWrite === true && mayBeDone && !(code !== undefined && NOT_DONE.includes(code));
      const pause = pauseMs(count, error);
      if (!passes(error) || performance.now() + pause >= ends) throw error;
      await sleep(pause, options.signal);
    }
  }

  async #attempt<T>(
    call: Call,
    idempotencyKey: string | undefined,
    attemptMs: number,
    signal: AbortSignal | undefined,
  ): Promise<{ result: T } | { error: OrderNumbersError }> {
    const { fetch } = this.#options; // browsers refuse `fetch` as a method of another object
    const timeout = AbortSignal.timeout(Math.min(Math.ceil(attemptMs), TIMER_MS_MAX));
    // Not inside `try`: a wrong URL or header is an error of the program.
    const request = new Request(this.#baseUrl + call.path + queryOf(call.query), {
      method: call.method,
      headers: {
        authorization: `Bearer ${this.#apiKey}`,
        ...(idempotencyKey === undefined ? {} : { "idempotency-key": idempotencyKey }),
        ...(call.body === undefined ? {} : { "content-type": "application/json" }),
      },
      ...(call.body === undefined ? {} : { body: JSON.stringify(call.body) }),
      redirect: "manual",
      signal: signal === undefined ? timeout : AbortSignal.any([signal, timeout]),
    });
    try {
      const response = await fetch(request);
      return read<T>(call, response, await response.text());
    } catch (error) {
      signal?.throwIfAborted();
      if (causeOf(error)?.message === "bad port") throw new RangeError("fetch sends nothing to the port of baseUrl");
      return { error: new NoResponse(`no response: ${error}`, { cause: error }) };
    }
  }
}

function read<T>(call: Call, response: Response, text: string): { result: T } | { error: OrderNumbersError } {
  const seconds = response.headers.get("retry-after") ?? "";
  const retryAfterSeconds = /^\d{1,9}$/.test(seconds) ? Number(seconds) : undefined;
  try {
    const json = JSON.parse(text);
    if (response.status !== 200) return { error: refusalOf(response.status, json, retryAfterSeconds) };
    if (json.success === true && isObject(json.data)) return { result: call.isWhole ? json : json.data };
  } catch {
    // Not JSON, or not that of a refusal.
  }
  return { error: new UnexpectedResponse(response.status, retryAfterSeconds, response.headers.get("x-request-id")) };
}

/** Returns the path of a route with these ids. Throws RangeError for one that would lead to another path. */
export function pathOf(route: string, ids: Readonly<Record<string, string>>): string {
  return route.replace(/\{(\w+)\}/g, (_, name: string) => {
    const id = ids[name] ?? "";
    if (/^\.*$/.test(id)) throw new RangeError(`${name} must be a UUID`);
    return encodeURIComponent(id);
  });
}

function queryOf(query: object = {}): string {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  return given.length === 0 ? "" : `?${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}`;
}

function isObject(value: unknown): boolean {
  return typeof value === "object" && value !== null;
}

/** Whether the request did not reach the service. */
function isNotSent(error: OrderNumbersError): boolean {
  return error instanceof NoResponse && NOT_SENT.includes(causeOf(error.cause)?.code ?? "");
}

/** What Node.js says about an error of fetch. Browsers say nothing. */
function causeOf(error: unknown): { code?: string; message?: string } | undefined {
  return error instanceof Error ? (error.cause as { code?: string; message?: string } | undefined) : undefined;
}

/** Whether the same call may succeed later. */
function passes(error: OrderNumbersError): boolean {
  if (error instanceof Refused && error.code === "IDEMPOTENCY_IN_PROGRESS") return true;
  const hasStatus = error instanceof Refused || error instanceof UnexpectedResponse;
  return error instanceof NoResponse || (hasStatus && PASSES.includes(error.status));
}

/** At least what the service asks for, and more and more at random, so that not all clients come back at once. */
function pauseMs(count: number, error: OrderNumbersError): number {
  const hasStatus = error instanceof Refused || error instanceof UnexpectedResponse;
  const asked = hasStatus ? error.retryAfterSeconds : undefined;
  const least = asked === undefined ? PAUSE_MS : asked * 1_000;
  return least + Math.random() * Math.min(2 ** count * 500, SPREAD_MS_MAX);
}

function sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(done, Math.min(ms, TIMER_MS_MAX));
    signal?.addEventListener("abort", done, { once: true });
    function done(): void {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      if (signal?.aborted) reject(signal.reason);
      else resolve();
    }
  });
}
