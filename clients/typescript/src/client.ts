/** The client with its calls. Generated from openapi.json by clients/generate.py. Do not edit it. */
import type {
  AttachCampaignRequest,
  AvailableNumber,
  BulkOrder,
  BulkOrderNumbersRequest,
  BulkReleaseNumbersRequest,
  FindOrderQuery,
  FindOrderResponse,
  GetOrderResponse,
  Hold,
  HoldNumbersRequest,
  ListNumbersQuery,
  ListNumbersResponse,
  OrderNumbersRequest,
  OrderNumbersResponse,
  PhoneNumber,
  ReleaseResult,
  ReleasedHold,
  ReleasedNumber,
  SearchNumbersRequest,
  UpdateNumberRequest,
} from "./models.js";
import { pathOf, Transport, type CallOptions, type WriteOptions } from "./transport.js";

/** A client for OrderNumbers. It sends a call again where that may help. */
export class Client extends Transport {
  /**
   * Returns numbers that could be ordered now, and reserves none of them. Clients that search at the same time get
   * different numbers, if there are enough.
   *
   * The API key needs the scope `numbers:write`.
   *
   * @returns Numbers that every organization could order when the search ran. They are not reserved.
   *
   * @throws ValidationFailed, or others.
   */
  search(request: SearchNumbersRequest = {}, options: CallOptions = {}): Promise<AvailableNumber[]> {
    return this.send<AvailableNumber[]>(
      { method: "POST", path: "/v1/phone-numbers/search", body: request },
      options,
    );
  }

  /**
   * Assigns the requested numbers to the caller's organization: all of them, or none. The sum of their prices is
   * taken from the organization's credit in the same transaction. With `validate_only` nothing is changed.
   *
   * The API key needs the scope `numbers:write`.
   *
   * @returns All requested numbers. They now belong to the organization, except with `validate_only`.
   *
   * @throws InsufficientCredit, InsufficientInventory, NotFound, ValidationFailed, or others.
   */
  order(request: OrderNumbersRequest, options: WriteOptions = {}): Promise<OrderNumbersResponse> {
    return this.send<OrderNumbersResponse>(
      { method: "POST", path: "/v1/phone-numbers/orders", body: request, isWrite: true, isWhole: true },
      options,
    );
  }

  /**
   * Returns the order that was carried out under an idempotency key, with its numbers as they were in its response.
   *
   * The API key needs the scope `numbers:read`.
   *
   * @returns The numbers of an order, in the order of the request, as they were in its response.
   *
   * @throws NotFound, ValidationFailed, or others.
   */
  findOrder(query: FindOrderQuery, options: CallOptions = {}): Promise<FindOrderResponse> {
    return this.send<FindOrderResponse>(
      { method: "GET", path: "/v1/phone-numbers/orders", query, isWhole: true },
      options,
    );
  }

  /**
   * Chooses so many numbers and assigns them, as OrderNumbers does: all of them, or none. It takes only numbers that
   * every organization could order.
   *
   * The API key needs the scope `numbers:write`.
   *
   * @returns A bulk order that was carried out.
   *
   * @throws InsufficientCredit, InsufficientInventory, NotFound, ValidationFailed, or others.
   */
  bulkOrder(request: BulkOrderNumbersRequest, options: WriteOptions = {}): Promise<BulkOrder> {
    return this.send<BulkOrder>(
      { method: "POST", path: "/v1/phone-numbers/bulk", body: request, isWrite: true },
      options,
    );
  }

  /**
   * Returns a bulk order, as its response was then.
   *
   * The API key needs the scope `numbers:read`.
   *
   * @returns A bulk order that was carried out earlier.
   *
   * @throws NotFound, ValidationFailed, or others.
   */
  getBulkOrder(id: string, options: CallOptions = {}): Promise<BulkOrder> {
    return this.send<BulkOrder>(
      { method: "GET", path: pathOf("/v1/phone-numbers/bulk/{id}", { id }) },
      options,
    );
  }

  /**
   * Returns an order, with its numbers as they were in its response.
   *
   * The API key needs the scope `numbers:read`.
   *
   * @returns The numbers of an order, in the order of the request, as they were in its response.
   *
   * @throws NotFound, ValidationFailed, or others.
   */
  getOrder(id: string, options: CallOptions = {}): Promise<GetOrderResponse> {
    return this.send<GetOrderResponse>(
      { method: "GET", path: pathOf("/v1/phone-numbers/orders/{id}", { id }), isWhole: true },
      options,
    );
  }

  /**
   * Keeps the requested numbers for the caller's organization for some minutes: all of them, or none. Until then
   * only that organization can order them.
   *
   * The API key needs the scope `numbers:write`.
   *
   * @returns The numbers are held.
   *
   * @throws InsufficientInventory, LimitExceeded, ValidationFailed, or others.
   */
  hold(request: HoldNumbersRequest, options: WriteOptions = {}): Promise<Hold> {
    return this.send<Hold>(
      { method: "POST", path: "/v1/phone-numbers/holds", body: request, isWrite: true },
      options,
    );
  }

  /**
   * Returns a hold that has not ended.
   *
   * The API key needs the scope `numbers:read`.
   *
   * @returns A hold that has not ended.
   *
   * @throws NotFound, ValidationFailed, or others.
   */
  getHold(id: string, options: CallOptions = {}): Promise<Hold> {
    return this.send<Hold>(
      { method: "GET", path: pathOf("/v1/phone-numbers/holds/{id}", { id }) },
      options,
    );
  }

  /**
   * Ends a hold.
   *
   * The API key needs the scope `numbers:write`.
   *
   * @returns The hold has ended.
   *
   * @throws NotFound, ValidationFailed, or others.
   */
  releaseHold(id: string, options: WriteOptions = {}): Promise<ReleasedHold> {
    return this.send<ReleasedHold>(
      { method: "DELETE", path: pathOf("/v1/phone-numbers/holds/{id}", { id }), isWrite: true },
      options,
    );
  }

  /**
   * Lists the organization's numbers, newest first.
   *
   * The API key needs the scope `numbers:read`.
   *
   * @returns A page of the organization's numbers, newest first.
   *
   * @throws ValidationFailed, or others.
   */
  listNumbers(query: ListNumbersQuery = {}, options: CallOptions = {}): Promise<ListNumbersResponse> {
    return this.send<ListNumbersResponse>(
      { method: "GET", path: "/v1/phone-numbers", query, isWhole: true },
      options,
    );
  }

  /** Goes through all pages of `listNumbers`. */
  async *allNumbers(
    query: Omit<ListNumbersQuery, "limit" | "cursor"> = {},
    options: CallOptions = {},
  ): AsyncGenerator<PhoneNumber, void> {
    let cursor: string | null = null;
    do {
      const page: ListNumbersResponse = await this.listNumbers(
        { ...query, limit: 100, ...(cursor === null ? {} : { cursor }) },
        options,
      );
      yield* page.data;
      cursor = page.meta.next_cursor;
    } while (cursor !== null);
  }

  /**
   * Returns one of the organization's numbers.
   *
   * The API key needs the scope `numbers:read`.
   *
   * @returns One of the organization's numbers.
   *
   * @throws NotFound, ValidationFailed, or others.
   */
  getNumber(id: string, options: CallOptions = {}): Promise<PhoneNumber> {
    return this.send<PhoneNumber>(
      { method: "GET", path: pathOf("/v1/phone-numbers/{id}", { id }) },
      options,
    );
  }

  /**
   * Changes the settings of a number.
   *
   * The API key needs the scope `numbers:write`.
   *
   * @returns The number with its new settings.
   *
   * @throws NotFound, ValidationFailed, or others.
   */
  updateNumber(id: string, request: UpdateNumberRequest = {}, options: WriteOptions = {}): Promise<PhoneNumber> {
    return this.send<PhoneNumber>(
      { method: "PATCH", path: pathOf("/v1/phone-numbers/{id}", { id }), body: request, isWrite: true },
      options,
    );
  }

  /**
   * Gives a number back. Its settings are removed, and nothing is refunded. For some time only this organization can
   * order the number again. Then every organization can.
   *
   * The API key needs the scope `numbers:write`.
   *
   * @returns The number was given back.
   *
   * @throws NotFound, ValidationFailed, or others.
   */
  releaseNumber(id: string, options: WriteOptions = {}): Promise<ReleasedNumber> {
    return this.send<ReleasedNumber>(
      { method: "DELETE", path: pathOf("/v1/phone-numbers/{id}", { id }), isWrite: true },
      options,
    );
  }

  /**
   * Puts a number into a campaign.
   *
   * The API key needs the scope `numbers:write`.
   *
   * @returns The number with its campaign.
   *
   * @throws NotFound, ValidationFailed, or others.
   */
  attachCampaign(id: string, request: AttachCampaignRequest, options: WriteOptions = {}): Promise<PhoneNumber> {
    return this.send<PhoneNumber>(
      { method: "POST", path: pathOf("/v1/phone-numbers/{id}/campaign", { id }), body: request, isWrite: true },
      options,
    );
  }

  /**
   * Takes a number out of its campaign.
   *
   * The API key needs the scope `numbers:write`.
   *
   * @returns The number, which has no campaign now.
   *
   * @throws NotFound, ValidationFailed, or others.
   */
  detachCampaign(id: string, options: WriteOptions = {}): Promise<PhoneNumber> {
    return this.send<PhoneNumber>(
      { method: "DELETE", path: pathOf("/v1/phone-numbers/{id}/campaign", { id }), isWrite: true },
      options,
    );
  }

  /**
   * Gives numbers back, as ReleaseNumber does. An id that is not a number of the organization refuses nothing.
   *
   * The API key needs the scope `numbers:write`.
   *
   * @returns What became of each number.
   *
   * @throws ValidationFailed, or others.
   */
  bulkRelease(request: BulkReleaseNumbersRequest, options: WriteOptions = {}): Promise<ReleaseResult> {
    return this.send<ReleaseResult>(
      { method: "POST", path: "/v1/phone-numbers/bulk/release", body: request, isWrite: true },
      options,
    );
  }
}
