/** A client for OrderNumbers: typed, without dependencies, and it sends a call again safely. */
export { Client } from "./client.js";
export * from "./errors.js";
export type * from "./models.js";
export type { CallOptions, ClientOptions, WriteOptions } from "./transport.js";
