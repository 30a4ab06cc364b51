/** The main cases of the contract, against the service at EDGE_URL with the API key in API_KEY. */
import assert from "node:assert/strict";
import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { after, test } from "node:test";

import {
  Client,
  InsufficientInventory,
  InvalidInput,
  NoResponse,
  NotFound,
  Refused,
  Unauthorized,
  Unavailable,
  UnexpectedResponse,
  ValidationFailed,
  type ClientOptions,
  type PhoneNumber,
} from "../src/index.js";

const EDGE_URL = process.env["EDGE_URL"]!;
const API_KEY = process.env["API_KEY"]!;
const client = new Client(EDGE_URL, API_KEY);

async function freeNumbers(count: number): Promise<string[]> {
  return (await client.search({ quantity: count })).map((row) => row.number);
}

async function thrown<T extends Error>(kind: abstract new (...args: never[]) => T, call: Promise<unknown>): Promise<T> {
  const error: unknown = await call.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof kind, `not a ${kind.name}: ${error}`);
  return error;
}

// ---------------------------------------------------------------- a proxy that spoils responses

type Mishap = (response: ServerResponse) => void;
const lose: Mishap = (response) => response.destroy();
const refuse = (status: number, code: string, retryAfter: string): Mishap => (response) =>
  response
    .writeHead(status, { "retry-after": retryAfter, "content-type": "application/json" })
    .end(JSON.stringify({ success: false, error: { code, message: "later", request_id: "r" } }));

const servers: Server[] = [];
after(() => {
  for (const server of servers) {
    server.closeAllConnections();
    server.close();
  }
});

/** A client behind the proxy, and the idempotency keys that it has sent. Each request reaches the service first. */
async function spoiled(mishaps: Mishap[], options: ClientOptions = {}): Promise<[Client, (string | undefined)[]]> {
  const keys: (string | undefined)[] = [];
  const server = createServer(async (request, response) => {
    keys.push(request.headers["idempotency-key"] as string | undefined);
    const body = (await request.toArray()).join("");
    const { host, connection, "content-length": length, ...headers } = request.headers as Record<string, string>;
    const real = await fetch(EDGE_URL + request.url, {
      method: request.method!,
      headers,
      ...(body === "" ? {} : { body }),
    });
    const text = await real.text();
    const mishap = mishaps.shift() ?? (() => response.writeHead(real.status).end(text));
    mishap(response);
  });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return [new Client(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`, API_KEY, options), keys];
}

// ---------------------------------------------------------------- the calls

test("a number is found, ordered, changed and given back", async () => {
  const [found] = await client.search({ area_code: "415", quantity: 1 });
  const { data } = await client.order({ numbers: [found!.number], label: "front desk" });
  const row = data[0]!;
  assert.deepEqual([row.number, row.label, row.inbound_url], [found!.number, "front desk", undefined]);
  assert.deepEqual(await client.getNumber(row.id!), row);
  assert.equal((await client.updateNumber(row.id!, { label: "night line" })).label, "night line");
  assert.equal((await client.releaseNumber(row.id!)).status, "released");
  await thrown(NotFound, client.getNumber(row.id!));
});

test("an order can be checked and looked up", async () => {
  const numbers = await freeNumbers(2);
  const idempotencyKey = crypto.randomUUID();
  const checked = await client.order({ numbers, validate_only: true });
  assert.deepEqual([checked.meta?.total_price, checked.data[0]!.id], ["2.00", undefined]);
  const ordered = await client.order({ numbers }, { idempotencyKey });
  const found = await client.findOrder({ idempotency_key: idempotencyKey });
  assert.deepEqual((await client.getOrder(found.meta.order_id)).data, ordered.data);
});

test("numbers are held and ordered in bulk", async () => {
  const numbers = await freeNumbers(2);
  const hold = await client.hold({ numbers, minutes: 5 });
  assert.deepEqual(await client.getHold(hold.id), hold);
  assert.deepEqual((await client.releaseHold(hold.id)).numbers, numbers);
  const order = await client.bulkOrder({ quantity: 2 });
  assert.deepEqual(await client.getBulkOrder(order.order_id), order);
  const ids = order.assigned_numbers.map((row) => row.id!);
  assert.deepEqual((await client.bulkRelease({ ids })).released, ids);
});

test("allNumbers goes through all pages", async () => {
  const label = `page ${crypto.randomUUID()}`;
  const ordered: PhoneNumber[] = [];
  for (const _ of [1, 2]) ordered.push(...(await client.order({ numbers: await freeNumbers(60), label })).data);
  const page = await client.listNumbers({ limit: 50, search: label });
  assert.deepEqual([page.data.length, typeof page.meta.next_cursor], [50, "string"]);
  const listed: string[] = [];
  for await (const row of client.allNumbers({ search: label })) listed.push(row.number);
  assert.deepEqual(listed.sort(), ordered.map((row) => row.number).sort());
});

// ---------------------------------------------------------------- errors

test("a number that is gone is named", async () => {
  const [taken, free] = (await freeNumbers(2)) as [string, string];
  await client.order({ numbers: [taken] });
  const error = await thrown(InsufficientInventory, client.order({ numbers: [free, taken] }));
  assert.deepEqual([error.unavailable, error.availableCount, error.status], [[taken], 1, 409]);
  assert.deepEqual([error.isOutcomeUnknown, error.name], [false, "InsufficientInventory"]);
});

test("fields that break their rules are named", async () => {
  const error = await thrown(ValidationFailed, client.order({ numbers: ["4155550100"] }));
  assert.deepEqual(error.details, { "numbers[0]": "must be E.164" });
  assert.ok(error.message.includes(error.requestId!));
});

test("an id cannot lead to another path", async () => {
  await thrown(InvalidInput, client.getNumber("a/b"));
  for (const id of ["", ".", ".."]) assert.throws(() => client.releaseNumber(id), RangeError);
});

test("a wrong API key is refused and appears nowhere", async () => {
  const wrong = new Client(EDGE_URL, "am_live_wrong");
  const error = await thrown(Unauthorized, wrong.search());
  assert.ok(!`${JSON.stringify(wrong)} ${error.stack}`.includes("am_live_wrong"));
});

test("an API key, a URL or an idempotency key that no request can have is an error of the program", async () => {
  for (const key of ["", "am_live_secret\n", "am live secret", "am_live_s\u00e9cret"])
    assert.throws(() => new Client(EDGE_URL, key), /^RangeError: apiKey must be visible ASCII characters$/);
  const urls = ["", "127.0.0.1:8080", "ftp://127.0.0.1", "http://", "http://:80", "http://a b", "http://me:secret@127.0.0.1"];
  for (const url of urls)
    assert.throws(() => new Client(url, API_KEY), /^RangeError: baseUrl must be http:\/\/ or https:\/\/ with a host, [a-z, ]+$/);
  for (const idempotencyKey of ["a\n", " a", "a\r\nb", "\u00e4"]) {
    const error = await thrown(RangeError, client.bulkOrder({ quantity: 1 }, { idempotencyKey }));
    assert.equal(error.message, "idempotencyKey must be visible ASCII characters");
  }
  for (const idempotencyKey of ["", "a b", "a".repeat(256)])
    await thrown(ValidationFailed, client.bulkOrder({ quantity: 1 }, { idempotencyKey }));
});

test("a port that fetch blocks is an error of the program", async () => {
  await thrown(RangeError, new Client("http://127.0.0.1:6000", API_KEY).bulkOrder({ quantity: 1 }));
});

test("a later code is a refusal too", async () => {
  for (const code of ["NEW", "constructor", "__proto__"]) {
    const [behind] = await spoiled([refuse(418, code, "1")]);
    const error = await thrown(Refused, behind.search());
    assert.deepEqual([error.constructor, error.code], [Refused, code]);
  }
});

test("a response without a result is not taken for one", async () => {
  for (const body of ['{"success":false,"data":[]}', '{"success":true}', '{"success":true,"data":null}', "[]"]) {
    const [behind] = await spoiled([(response) => response.writeHead(200).end(body)]);
    await thrown(UnexpectedResponse, behind.search());
  }
});

test("a response of another server is not taken for a refusal", async () => {
  const [behind] = await spoiled([(response) => response.writeHead(404).end("<h1>Not here</h1>")]);
  const error = await thrown(UnexpectedResponse, behind.bulkOrder({ quantity: 1 }));
  assert.deepEqual([error.status, error.isOutcomeUnknown], [404, true]);
});

test("an error of another server in JSON is not taken for a refusal either", async () => {
  for (const error of ['{"code":502,"message":"Bad gateway"}', '"Bad gateway"']) {
    const [behind] = await spoiled([(response) => response.writeHead(502).end(`{"error":${error}}`)]);
    const thrownError = await thrown(UnexpectedResponse, behind.bulkOrder({ quantity: 1 }));
    assert.deepEqual([thrownError.status, thrownError.isOutcomeUnknown], [502, true]);
  }
});

// ---------------------------------------------------------------- sent again

test("an order whose response is lost is sent again and sold once", async () => {
  const [behind, keys] = await spoiled([lose, lose]);
  const numbers = await freeNumbers(1);
  const { data } = await behind.order({ numbers });
  assert.deepEqual(data.map((row) => row.number), numbers);
  assert.deepEqual([keys.length, new Set(keys).size], [3, 1]);
});

const PASSING = { UNAVAILABLE: 503, RATE_LIMITED: 429, TIMEOUT: 504, IDEMPOTENCY_IN_PROGRESS: 409 };
for (const [code, status] of Object.entries(PASSING))
  test(`${code} is waited out`, async () => {
    const [behind, keys] = await spoiled([refuse(status, code, "1")]);
    assert.equal((await behind.bulkOrder({ quantity: 1 })).status, "complete");
    assert.deepEqual([keys.length, new Set(keys).size], [2, 1]);
  });

test("a deadline that Retry-After exceeds is not waited for", async () => {
  const [behind, keys] = await spoiled([refuse(503, "UNAVAILABLE", "3600")]);
  const error = await thrown(Unavailable, behind.bulkOrder({ quantity: 1 }));
  assert.deepEqual([error.retryAfterSeconds, error.isOutcomeUnknown, keys.length], [3600, false, 1]);
});

test("a call with the key of an earlier one does not say that nothing was done", async () => {
  const [behind] = await spoiled([refuse(503, "UNAVAILABLE", "3600")]);
  const error = await thrown(Unavailable, behind.bulkOrder({ quantity: 1 }, { idempotencyKey: "of-an-earlier-call" }));
  assert.ok(error.isOutcomeUnknown);
});

test("a refusal after a lost response does not say that nothing was done", async () => {
  const [behind, keys] = await spoiled([lose, refuse(503, "UNAVAILABLE", "3600")]);
  const error = await thrown(Unavailable, behind.bulkOrder({ quantity: 1 }));
  assert.ok(error.isOutcomeUnknown);
  await behind.bulkOrder({ quantity: 1 }, { idempotencyKey: error.idempotencyKey! });
  assert.equal(new Set(keys).size, 1);
});

test("a refusal that was sent again says that nothing was done", async () => {
  const numbers = await freeNumbers(1);
  await client.order({ numbers });
  const [behind] = await spoiled([lose]);
  const error = await thrown(InsufficientInventory, behind.order({ numbers }));
  assert.equal(error.isOutcomeUnknown, false);
});

test("a request that breaks the rules was never carried out", async () => {
  const numbers = await freeNumbers(1);
  const first = await thrown(ValidationFailed, client.order({ numbers }, { idempotencyKey: "a b" }));
  assert.equal(first.isOutcomeUnknown, false);
  const [behind] = await spoiled([refuse(504, "TIMEOUT", "1")]);
  const second = await thrown(ValidationFailed, behind.order({ numbers: ["4155550100"] }));
  assert.equal(second.isOutcomeUnknown, false);
});

const MALFORMED = { INVALID_INPUT: 400, PAYLOAD_TOO_LARGE: 413, UNSUPPORTED_MEDIA_TYPE: 415 };
for (const [code, status] of Object.entries(MALFORMED))
  test(`a request that is ${code} was never carried out`, async () => {
    const [behind] = await spoiled([lose, refuse(status, code, "1")]);
    const error = await thrown(Refused, behind.bulkOrder({ quantity: 1 }));
    assert.deepEqual([error.code, error.isOutcomeUnknown], [code, false]);
  });

test("without a server nothing was done", async () => {
  const server = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.on("listening", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  const nowhere = new Client(`http://127.0.0.1:${port}`, API_KEY, { deadlineMs: 500 });
  const error = await thrown(NoResponse, nowhere.bulkOrder({ quantity: 1 }));
  assert.equal(error.isOutcomeUnknown, false);
});

test("a response that does not come in time is given up", async () => {
  const [behind] = await spoiled([() => undefined], { attemptMs: 500, deadlineMs: 1_000 });
  const error = await thrown(NoResponse, behind.bulkOrder({ quantity: 1 }));
  assert.deepEqual([(error.cause as Error).name, error.isOutcomeUnknown], ["TimeoutError", true]);
});

test("an attempt may last for ever", async () => {
  for (const ms of [2 ** 31, 2 ** 33, Infinity]) {
    const patient = new Client(EDGE_URL, API_KEY, { attemptMs: ms, deadlineMs: ms });
    assert.equal((await patient.search({ quantity: 1 })).length, 1);
  }
});

test("a pause that is longer than a timer is still a pause", async () => {
  const [behind, keys] = await spoiled([refuse(503, "UNAVAILABLE", "9999999")], { deadlineMs: Infinity });
  await thrown(DOMException, behind.bulkOrder({ quantity: 1 }, { signal: AbortSignal.timeout(1_000) }));
  assert.equal(keys.length, 1);
});

test("a signal ends a call, also while it waits", async () => {
  for (const mishap of [() => undefined, refuse(503, "UNAVAILABLE", "20")]) {
    const controller = new AbortController();
    const [behind] = await spoiled([
      (response) => {
        mishap(response);
        setTimeout(() => controller.abort(new Error("enough")), 200);
      },
    ]);
    const error = await thrown(Error, behind.search({}, { signal: controller.signal }));
    assert.equal(error.message, "enough");
  }
});
