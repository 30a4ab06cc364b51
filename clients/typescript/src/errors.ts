/** What a call throws. docs/errors.md of the service has each code, and what to do next. */
import type { ErrorCode, InventoryShortage } from "./models.js";

/** A call has no result. */
export class OrderNumbersError extends Error {
  /** The id of the last attempt. Quote it when you ask for support. */
  requestId: string | undefined;
  /** The idempotency key of all attempts. Undefined for a call that changes nothing. */
  idempotencyKey: string | undefined;
  /** Whether the call may have been carried out. To find out, send it again with `idempotencyKey`. */
  isOutcomeUnknown = false;

  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** No attempt got a response before the deadline. `cause` is the last one's error. */
export class NoResponse extends OrderNumbersError {}

/** The response is not one of the service's, for example a proxy's own page. */
export class UnexpectedResponse extends OrderNumbersError {
  readonly status: number;
  readonly retryAfterSeconds: number | undefined;

  constructor(status: number, retryAfterSeconds: number | undefined, requestId: string | null) {
    super(`${status}: not a response of OrderNumbers`);
    this.status = status;
    this.retryAfterSeconds = retryAfterSeconds;
    this.requestId = requestId ?? undefined;
  }
}

/** The JSON of a refusal. */
export interface Refusal {
  readonly error: {
    readonly code: string;
    readonly message: string;
    readonly request_id: string;
    readonly details?: Readonly<Record<string, string>>;
  };
  readonly data?: InventoryShortage;
}

/** The service has refused the call. The codes without a class of their own mean an error in the client program. */
export class Refused extends OrderNumbersError {
  readonly status: number;
  /** A later version of the service may add some. */
  readonly code: ErrorCode | (string & {});
  /** Each field at fault with the rule that it breaks: `{"numbers[1]": "must be E.164"}`. */
  readonly details: Readonly<Record<string, string>>;
  readonly retryAfterSeconds: number | undefined;

  constructor(status: number, refusal: Refusal, retryAfterSeconds: number | undefined) {
    const { code, message, request_id, details } = refusal.error;
    const faults = details === undefined ? "" : ` ${JSON.stringify(details)}`;
    super(`${code}: ${message}${faults} (request ${request_id})`);
    this.status = status;
    this.code = code;
    this.details = details ?? {};
    this.retryAfterSeconds = retryAfterSeconds;
    this.requestId = request_id;
  }
}

/** The request is not what the service describes. */
export class InvalidInput extends Refused {}

/** The API key is missing, malformed, unknown, expired or revoked. */
export class Unauthorized extends Refused {}

/** The numbers cost more than the balance. */
export class InsufficientCredit extends Refused {}

/** The API key lacks the scope of the call. */
export class Forbidden extends Refused {}

/** What the call names does not exist, or belongs to another organization. */
export class NotFound extends Refused {}

/** Some numbers are not available. Nothing was ordered or held. */
export class InsufficientInventory extends Refused {
  /** All requested numbers that are not available, in the order of the request. Empty for a bulk order. */
  readonly unavailable: readonly string[];
  /** How many of the others there are. For a bulk order, how many numbers were found. */
  readonly availableCount: number;

  constructor(status: number, refusal: Refusal, retryAfterSeconds: number | undefined) {
    super(status, refusal, retryAfterSeconds);
    this.unavailable = refusal.data!.unavailable;
    this.availableCount = refusal.data!.available_count;
  }
}

/** The organization would hold too many numbers. */
export class LimitExceeded extends Refused {}

/** A request with this idempotency key is still under way. */
export class IdempotencyInProgress extends Refused {}

/** Another request has used this idempotency key. */
export class IdempotencyKeyReused extends Refused {}

/** Fields break their rules, or the campaign may not be used. `details` has all of them. */
export class ValidationFailed extends Refused {}

/** Too many calls of the API key, or of the address. */
export class RateLimited extends Refused {}

/** An error of the service. Report the `requestId`. */
export class Internal extends Refused {}

/** The service could not carry out this attempt. */
export class Unavailable extends Refused {}

/** The service did not carry out this attempt in time, or it does not know whether it did. */
export class Timeout extends Refused {}

const CLASSES: Readonly<Partial<Record<string, typeof Refused>>> = {
  INVALID_INPUT: InvalidInput,
  UNAUTHORIZED: Unauthorized,
  INSUFFICIENT_CREDIT: InsufficientCredit,
  FORBIDDEN: Forbidden,
  NOT_FOUND: NotFound,
  INSUFFICIENT_INVENTORY: InsufficientInventory,
  LIMIT_EXCEEDED: LimitExceeded,
  IDEMPOTENCY_IN_PROGRESS: IdempotencyInProgress,
  IDEMPOTENCY_KEY_REUSED: IdempotencyKeyReused,
  VALIDATION_FAILED: ValidationFailed,
  RATE_LIMITED: RateLimited,
  INTERNAL: Internal,
  UNAVAILABLE: Unavailable,
  TIMEOUT: Timeout,
} satisfies Partial<Record<ErrorCode, typeof Refused>>;

/** Returns the error for the JSON of a refusal. Throws TypeError if it is none. */
export function refusalOf(status: number, refusal: Refusal, retryAfterSeconds: number | undefined): Refused {
  const { code, message, request_id } = refusal.error;
  if ([code, message, request_id].some((each) => typeof each !== "string")) throw new TypeError("not a refusal");
  const kind = Object.hasOwn(CLASSES, code) ? CLASSES[code]! : Refused; // every object has a "constructor"
  return new kind(status, refusal, retryAfterSeconds);
}
