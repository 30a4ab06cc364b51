/** What the calls take and return. Generated from openapi.json by clients/generate.py. Do not edit it. */

/** The code of a refusal. */
export type ErrorCode =
  | "INVALID_INPUT"
  | "UNAUTHORIZED"
  | "FORBIDDEN"
  | "VALIDATION_FAILED"
  | "NOT_FOUND"
  | "INSUFFICIENT_INVENTORY"
  | "LIMIT_EXCEEDED"
  | "INSUFFICIENT_CREDIT"
  | "IDEMPOTENCY_IN_PROGRESS"
  | "IDEMPOTENCY_KEY_REUSED"
  | "RATE_LIMITED"
  | "METHOD_NOT_ALLOWED"
  | "REQUEST_TIMEOUT"
  | "PAYLOAD_TOO_LARGE"
  | "UNSUPPORTED_MEDIA_TYPE"
  | "UPGRADE_REQUIRED"
  | "HEADERS_TOO_LARGE"
  | "INTERNAL"
  | "UNAVAILABLE"
  | "TIMEOUT";

/** Which numbers to search for. All fields are optional. */
export interface SearchNumbersRequest {
  /** Only numbers of this area code of the North American Numbering Plan: 3 digits, such as "415" for +1415…. */
  readonly area_code?: string;
  /** Only numbers of this type: "local", "toll_free" or "short_code". */
  readonly number_type?: "local" | "toll_free" | "short_code";
  /** Only numbers that have these digits somewhere: 1 to 15 digits. */
  readonly pattern?: string;
  /** Only numbers that can, or cannot, send and receive SMS. */
  readonly sms_enabled?: boolean;
  /** Only numbers that can, or cannot, send and receive MMS. */
  readonly mms_enabled?: boolean;
  /** The most numbers to return: 1 to 100. When absent, 10. */
  readonly quantity?: number;
}

/** The numbers to order, and the settings that each of them gets. */
export interface OrderNumbersRequest {
  /** The numbers to order: 1 to 100 numbers in E.164 format, such as "+14155550123", without repetition. */
  readonly numbers: readonly string[];
  /**
   * The URL that receives the inbound messages and calls of these numbers: an absolute https:// URL on a public
   * host. It has at most 2048 characters, no user and no fragment. When absent, the numbers have no such URL.
   */
  readonly inbound_url?: string;
  /**
   * The URL that receives the delivery reports of these numbers. It follows the rules of `inbound_url`. When absent,
   * the numbers have no such URL.
   */
  readonly status_url?: string;
  /**
   * The messaging campaign that these numbers join: the UUID of a campaign of the caller's organization. The
   * campaign must be ACTIVE. The identity status of its brand must be VERIFIED or VETTED_VERIFIED. When absent, the
   * numbers join no campaign.
   */
  readonly campaign_id?: string;
  /**
   * A name that the caller gives to these numbers: 1 to 255 characters. Control characters are not allowed, and at
   * least one character must be visible. Spaces, format characters (such as bidi controls and zero-width
   * characters), marks, fillers and blank symbols do not count as visible. When absent, the numbers have no label.
   */
  readonly label?: string;
  /**
   * Whether the order is only checked. The whole decision is made, and nothing is changed. Then no idempotency key
   * is used.
   */
  readonly validate_only?: boolean;
}

/** How many numbers to order, which ones, and the settings that each of them gets. */
export interface BulkOrderNumbersRequest {
  /** How many numbers to order: 1 to 100. */
  readonly quantity: number;
  /** Absent or "atomic": all numbers are assigned, or none. */
  readonly mode?: "atomic";
  /** Only numbers of this area code of the North American Numbering Plan: 3 digits, such as "415" for +1415…. */
  readonly area_code?: string;
  /** Only numbers of this type: "local", "toll_free" or "short_code". */
  readonly number_type?: "local" | "toll_free" | "short_code";
  /** Only numbers that have these digits somewhere: 1 to 15 digits. */
  readonly pattern?: string;
  /** Only numbers that can, or cannot, send and receive SMS. */
  readonly sms_enabled?: boolean;
  /** Only numbers that can, or cannot, send and receive MMS. */
  readonly mms_enabled?: boolean;
  /** The settings of the numbers. They follow the rules of OrderNumbersRequest. */
  readonly inbound_url?: string;
  /** See OrderNumbersRequest. */
  readonly status_url?: string;
  /** See OrderNumbersRequest. */
  readonly campaign_id?: string;
  /** See OrderNumbersRequest. */
  readonly label?: string;
}

/** The numbers to hold, and for how long. */
export interface HoldNumbersRequest {
  /** The numbers to hold: 1 to 100 numbers in E.164 format, such as "+14155550123", without repetition. */
  readonly numbers: readonly string[];
  /** How long to hold them, in minutes: 1 to 30. When absent, 10. */
  readonly minutes?: number;
}

/** The new settings of a number. A field that is absent keeps its value. */
export interface UpdateNumberRequest {
  /** The URL that receives inbound messages and calls. It follows the rules of an order, or is "" to remove the URL. */
  readonly inbound_url?: string;
  /** The URL that receives delivery reports. It follows the rules of an order, or is "" to remove the URL. */
  readonly status_url?: string;
  /** The name of the number. It follows the rules of an order, or is "" to remove the name. */
  readonly label?: string;
  /** The messaging campaign that the number joins. It follows the rules of an order. DetachCampaign removes it. */
  readonly campaign_id?: string;
}

/** The campaign that a number joins. */
export interface AttachCampaignRequest {
  /** The UUID of the campaign. It follows the rules of an order. */
  readonly campaign_id: string;
}

/** Which numbers to give back. */
export interface BulkReleaseNumbersRequest {
  /** The ids of the numbers' assignments: 1 to 100 UUIDs. An id that is repeated counts once. */
  readonly ids: readonly string[];
}

/** Which of them: see FindOrder. */
export interface FindOrderQuery {
  /** The idempotency key that the order was sent with: 1 to 255 visible ASCII characters, without quotes. */
  readonly idempotency_key: string;
}

/** Which of them: see ListNumbers. */
export interface ListNumbersQuery {
  /** The most numbers to return: 1 to 100. When absent, 20. */
  readonly limit?: number;
  /** The `next_cursor` of the page before. When absent, the first page. */
  readonly cursor?: string;
  /** Only numbers of this type: "local", "toll_free" or "short_code". */
  readonly number_type?: "local" | "toll_free" | "short_code";
  /** Only numbers in this campaign, a UUID. */
  readonly campaign_id?: string;
  /** Only numbers that have this text in the number or, in upper or lower case, in the label: 1 to 255 characters. */
  readonly search?: string;
}

/** A number that can be ordered. */
export interface AvailableNumber {
  /** The number, in E.164 format. */
  number: string;
  /** "local", "toll_free" or "short_code". */
  number_type: string;
  /** Whether the number can send and receive SMS. */
  sms_enabled: boolean;
  /** Whether the number can send and receive MMS. */
  mms_enabled: boolean;
  /** What an order of the number costs, in the currency of the credit: a decimal such as "1.50". */
  price: string;
}

/** A number assigned to an organization. */
export interface PhoneNumber {
  /**
   * The id of the assignment, a UUID. When the number is assigned again later, that assignment has another id.
   * Absent in the response to an order with `validate_only`, as both times are.
   */
  id?: string;
  /** The number, in E.164 format. */
  number: string;
  /** "local", "toll_free" or "short_code". */
  number_type: string;
  /** The URL that receives inbound messages and calls. Absent when there is none. */
  inbound_url?: string;
  /** The URL that receives delivery reports. Absent when there is none. */
  status_url?: string;
  /** The name that the caller gave to the number. Absent when there is none. */
  label?: string;
  /** The UUID of the number's messaging campaign. Absent when there is none. */
  campaign_id?: string;
  /** Whether the number can send and receive SMS. */
  sms_enabled: boolean;
  /** Whether the number can send and receive MMS. */
  mms_enabled: boolean;
  /** When the number was assigned, in whole seconds. */
  created_at?: string;
  /** When the settings of the number last changed, in whole seconds. */
  updated_at?: string;
}

/** What an order would cost. */
export interface OrderPreview {
  /** The sum of the prices, a decimal such as "0.30". */
  total_price: string;
}

/** All requested numbers. They now belong to the organization, except with `validate_only`. */
export interface OrderNumbersResponse {
  /** One entry per number, in the order of the request. */
  data: PhoneNumber[];
  /** Present only with `validate_only`. */
  meta?: OrderPreview;
}

/** Which order it is. */
export interface OrderReference {
  /** The id of the order, a UUID. GetOrder takes it. */
  order_id: string;
}

/** The numbers of an order, in the order of the request, as they were in its response. */
export interface FindOrderResponse {
  /** One entry per number. It may have other settings now, or may have been given back. */
  data: PhoneNumber[];
  /** Which order it is. */
  meta: OrderReference;
}

/** A bulk order, as it was when it was carried out. */
export interface BulkOrder {
  /** The id of the order, a UUID. */
  order_id: string;
  /** Always "complete". */
  status: string;
  /** How many numbers were ordered. */
  quantity: number;
  /** How many numbers were assigned: all of them. */
  assigned_count: number;
  /** How many numbers are still to be assigned: none. */
  pending_count: number;
  /** The numbers that were assigned. */
  assigned_numbers: PhoneNumber[];
}

/** The numbers of an order, in the order of the request, as they were in its response. */
export interface GetOrderResponse {
  /** One entry per number. It may have other settings now, or may have been given back. */
  data: PhoneNumber[];
  /** Which order it is. */
  meta: OrderReference;
}

/** Numbers that are kept for the organization until a time. */
export interface Hold {
  /** The id of the hold, a UUID. */
  id: string;
  /**
   * The numbers that it keeps, in the order of the request. A number leaves its hold when it is ordered or held
   * anew.
   */
  numbers: string[];
  /** When the hold was made, in whole seconds. */
  created_at: string;
  /** When the hold ends, in whole seconds. */
  expires_at: string;
}

/** A hold that has ended. */
export interface ReleasedHold {
  /** Always "released". */
  status: string;
  /** The numbers that it kept until now, in the order of the request. */
  numbers: string[];
}

/** Where a list goes on. */
export interface PageMeta {
  /** The most numbers of a page. */
  limit: number;
  /** The `cursor` of the next page, a string. Null on the last page. */
  next_cursor: string | null;
}

/** A page of the organization's numbers, newest first. */
export interface ListNumbersResponse {
  /** The numbers. Empty if there are none. */
  data: PhoneNumber[];
  /** Where the list goes on. */
  meta: PageMeta;
}

/** A number that was given back. */
export interface ReleasedNumber {
  /** Always "released". */
  status: string;
  /** When every organization can order the number again, in whole seconds. Until then only this organization can. */
  available_at: string;
}

/** The distinct ids of the request, each in one list, in the order of the request. */
export interface ReleaseResult {
  /** The numbers that were given back now. */
  released: string[];
  /** The numbers that this organization gave back before, and that are not available to others yet. */
  already_released: string[];
  /** All others. An id of another organization looks the same as one that does not exist. */
  unknown: string[];
}

/** Why an order cannot be filled. Assigned, held, resting and unknown numbers look the same here. */
export interface InventoryShortage {
  /** How many of the requested numbers the caller could order now. For a bulk order: how many were found. */
  available_count: number;
  /** All requested numbers that are not available, in the order of the request. Empty for a bulk order. */
  unavailable: string[];
}
