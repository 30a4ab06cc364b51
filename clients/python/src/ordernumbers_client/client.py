"""Both clients with their calls. Generated from openapi.json by clients/generate.py. Do not edit it."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Literal

from ordernumbers_client.call import Call, given, path_of
from ordernumbers_client.models import (
    AvailableNumber,
    BulkOrder,
    FindOrderResponse,
    GetOrderResponse,
    Hold,
    ListNumbersResponse,
    OrderNumbersResponse,
    PhoneNumber,
    ReleasedHold,
    ReleasedNumber,
    ReleaseResult,
)
from ordernumbers_client.transport import AsyncTransport, SyncTransport


class Client(SyncTransport):
    """A client for programs with threads. See its base class for the arguments."""

    def search(
        self,
        *,
        area_code: str | None = None,
        number_type: Literal["local", "toll_free", "short_code"] | None = None,
        pattern: str | None = None,
        sms_enabled: bool | None = None,
        mms_enabled: bool | None = None,
        quantity: int | None = None,
        deadline_seconds: float | None = None,
    ) -> list[AvailableNumber]:
        """Returns numbers that could be ordered now, and reserves none of them. Clients that search at the same time
        get different numbers, if there are enough.

        The API key needs the scope `numbers:write`.

        Args:
            area_code: Only numbers of this area code of the North American Numbering Plan: 3 digits, such as "415"
                for +1415….
            number_type: Only numbers of this type: "local", "toll_free" or "short_code".
            pattern: Only numbers that have these digits somewhere: 1 to 15 digits.
            sms_enabled: Only numbers that can, or cannot, send and receive SMS.
            mms_enabled: Only numbers that can, or cannot, send and receive MMS.
            quantity: The most numbers to return: 1 to 100. When absent, 10.

        Returns:
            Numbers that every organization could order when the search ran. They are not reserved.

        Raises:
            ValidationFailed, or another OrderNumbersError.
        """
        return self._send(
            Call(
                "POST",
                "/v1/phone-numbers/search",
                list[AvailableNumber],
                body=given(
                    area_code=area_code,
                    number_type=number_type,
                    pattern=pattern,
                    sms_enabled=sms_enabled,
                    mms_enabled=mms_enabled,
                    quantity=quantity,
                ),
            ),
            deadline_seconds,
        )

    def order(
        self,
        numbers: Sequence[str],
        *,
        inbound_url: str | None = None,
        status_url: str | None = None,
        campaign_id: str | None = None,
        label: str | None = None,
        validate_only: bool | None = None,
        idempotency_key: str | None = None,
        deadline_seconds: float | None = None,
    ) -> OrderNumbersResponse:
        """Assigns the requested numbers to the caller's organization: all of them, or none. The sum of their prices is
        taken from the organization's credit in the same transaction. With `validate_only` nothing is changed.

        The API key needs the scope `numbers:write`.

        Args:
            numbers: The numbers to order: 1 to 100 numbers in E.164 format, such as "+14155550123", without
                repetition.
            inbound_url: The URL that receives the inbound messages and calls of these numbers: an absolute https://
                URL on a public host. It has at most 2048 characters, no user and no fragment. When absent, the
                numbers have no such URL.
            status_url: The URL that receives the delivery reports of these numbers. It follows the rules of
                `inbound_url`. When absent, the numbers have no such URL.
            campaign_id: The messaging campaign that these numbers join: the UUID of a campaign of the caller's
                organization. The campaign must be ACTIVE. The identity status of its brand must be VERIFIED or
                VETTED_VERIFIED. When absent, the numbers join no campaign.
            label: A name that the caller gives to these numbers: 1 to 255 characters. Control characters are not
                allowed, and at least one character must be visible. Spaces, format characters (such as bidi
                controls and zero-width characters), marks, fillers and blank symbols do not count as visible. When
                absent, the numbers have no label.
            validate_only: Whether the order is only checked. The whole decision is made, and nothing is changed.
                Then no idempotency key is used.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            All requested numbers. They now belong to the organization, except with `validate_only`.

        Raises:
            InsufficientCredit, InsufficientInventory, NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return self._send(
            Call(
                "POST",
                "/v1/phone-numbers/orders",
                OrderNumbersResponse,
                body=given(
                    numbers=numbers,
                    inbound_url=inbound_url,
                    status_url=status_url,
                    campaign_id=campaign_id,
                    label=label,
                    validate_only=validate_only,
                ),
                is_write=True,
                idempotency_key=idempotency_key,
                is_whole=True,
            ),
            deadline_seconds,
        )

    def find_order(self, idempotency_key: str, *, deadline_seconds: float | None = None) -> FindOrderResponse:
        """Returns the order that was carried out under an idempotency key, with its numbers as they were in its
        response.

        The API key needs the scope `numbers:read`.

        Args:
            idempotency_key: The idempotency key that the order was sent with: 1 to 255 visible ASCII characters,
                without quotes.

        Returns:
            The numbers of an order, in the order of the request, as they were in its response.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return self._send(
            Call(
                "GET",
                "/v1/phone-numbers/orders",
                FindOrderResponse,
                query=given(idempotency_key=idempotency_key),
                is_whole=True,
            ),
            deadline_seconds,
        )

    def bulk_order(
        self,
        quantity: int,
        *,
        mode: Literal["atomic"] | None = None,
        area_code: str | None = None,
        number_type: Literal["local", "toll_free", "short_code"] | None = None,
        pattern: str | None = None,
        sms_enabled: bool | None = None,
        mms_enabled: bool | None = None,
        inbound_url: str | None = None,
        status_url: str | None = None,
        campaign_id: str | None = None,
        label: str | None = None,
        idempotency_key: str | None = None,
        deadline_seconds: float | None = None,
    ) -> BulkOrder:
        """Chooses so many numbers and assigns them, as OrderNumbers does: all of them, or none. It takes only numbers
        that every organization could order.

        The API key needs the scope `numbers:write`.

        Args:
            quantity: How many numbers to order: 1 to 100.
            mode: Absent or "atomic": all numbers are assigned, or none.
            area_code: Only numbers of this area code of the North American Numbering Plan: 3 digits, such as "415"
                for +1415….
            number_type: Only numbers of this type: "local", "toll_free" or "short_code".
            pattern: Only numbers that have these digits somewhere: 1 to 15 digits.
            sms_enabled: Only numbers that can, or cannot, send and receive SMS.
            mms_enabled: Only numbers that can, or cannot, send and receive MMS.
            inbound_url: The settings of the numbers. They follow the rules of OrderNumbersRequest.
            status_url: See OrderNumbersRequest.
            campaign_id: See OrderNumbersRequest.
            label: See OrderNumbersRequest.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            A bulk order that was carried out.

        Raises:
            InsufficientCredit, InsufficientInventory, NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return self._send(
            Call(
                "POST",
                "/v1/phone-numbers/bulk",
                BulkOrder,
                body=given(
                    quantity=quantity,
                    mode=mode,
                    area_code=area_code,
                    number_type=number_type,
                    pattern=pattern,
                    sms_enabled=sms_enabled,
                    mms_enabled=mms_enabled,
                    inbound_url=inbound_url,
                    status_url=status_url,
                    campaign_id=campaign_id,
                    label=label,
                ),
                is_write=True,
                idempotency_key=idempotency_key,
            ),
            deadline_seconds,
        )

    def get_bulk_order(self, id: str, *, deadline_seconds: float | None = None) -> BulkOrder:
        """Returns a bulk order, as its response was then.

        The API key needs the scope `numbers:read`.

        Args:
            id: The id of the order, a UUID.

        Returns:
            A bulk order that was carried out earlier.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return self._send(Call("GET", path_of("/v1/phone-numbers/bulk/{id}", id=id), BulkOrder), deadline_seconds)

    def get_order(self, id: str, *, deadline_seconds: float | None = None) -> GetOrderResponse:
        """Returns an order, with its numbers as they were in its response.

        The API key needs the scope `numbers:read`.

        Args:
            id: The id of the order, a UUID.

        Returns:
            The numbers of an order, in the order of the request, as they were in its response.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return self._send(
            Call("GET", path_of("/v1/phone-numbers/orders/{id}", id=id), GetOrderResponse, is_whole=True),
            deadline_seconds,
        )

    def hold(
        self,
        numbers: Sequence[str],
        *,
        minutes: int | None = None,
        idempotency_key: str | None = None,
        deadline_seconds: float | None = None,
    ) -> Hold:
        """Keeps the requested numbers for the caller's organization for some minutes: all of them, or none. Until then
        only that organization can order them.

        The API key needs the scope `numbers:write`.

        Args:
            numbers: The numbers to hold: 1 to 100 numbers in E.164 format, such as "+14155550123", without
                repetition.
            minutes: How long to hold them, in minutes: 1 to 30. When absent, 10.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            The numbers are held.

        Raises:
            InsufficientInventory, LimitExceeded, ValidationFailed, or another OrderNumbersError.
        """
        return self._send(
            Call(
                "POST",
                "/v1/phone-numbers/holds",
                Hold,
                body=given(numbers=numbers, minutes=minutes),
                is_write=True,
                idempotency_key=idempotency_key,
            ),
            deadline_seconds,
        )

    def get_hold(self, id: str, *, deadline_seconds: float | None = None) -> Hold:
        """Returns a hold that has not ended.

        The API key needs the scope `numbers:read`.

        Args:
            id: The id of the hold, a UUID.

        Returns:
            A hold that has not ended.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return self._send(Call("GET", path_of("/v1/phone-numbers/holds/{id}", id=id), Hold), deadline_seconds)

    def release_hold(
        self, id: str, *, idempotency_key: str | None = None, deadline_seconds: float | None = None
    ) -> ReleasedHold:
        """Ends a hold.

        The API key needs the scope `numbers:write`.

        Args:
            id: The id of the hold, a UUID.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            The hold has ended.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return self._send(
            Call(
                "DELETE",
                path_of("/v1/phone-numbers/holds/{id}", id=id),
                ReleasedHold,
                is_write=True,
                idempotency_key=idempotency_key,
            ),
            deadline_seconds,
        )

    def list_numbers(
        self,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        number_type: Literal["local", "toll_free", "short_code"] | None = None,
        campaign_id: str | None = None,
        search: str | None = None,
        deadline_seconds: float | None = None,
    ) -> ListNumbersResponse:
        """Lists the organization's numbers, newest first.

        The API key needs the scope `numbers:read`.

        Args:
            limit: The most numbers to return: 1 to 100. When absent, 20.
            cursor: The `next_cursor` of the page before. When absent, the first page.
            number_type: Only numbers of this type: "local", "toll_free" or "short_code".
            campaign_id: Only numbers in this campaign, a UUID.
            search: Only numbers that have this text in the number or, in upper or lower case, in the label: 1 to
                255 characters.

        Returns:
            A page of the organization's numbers, newest first.

        Raises:
            ValidationFailed, or another OrderNumbersError.
        """
        return self._send(
            Call(
                "GET",
                "/v1/phone-numbers",
                ListNumbersResponse,
                query=given(
                    limit=limit, cursor=cursor, number_type=number_type, campaign_id=campaign_id, search=search
                ),
                is_whole=True,
            ),
            deadline_seconds,
        )

    def all_numbers(
        self,
        *,
        number_type: Literal["local", "toll_free", "short_code"] | None = None,
        campaign_id: str | None = None,
        search: str | None = None,
        deadline_seconds: float | None = None,
    ) -> Iterator[PhoneNumber]:
        """Goes through all pages of `list_numbers`.

        Args:
            number_type: Only numbers of this type: "local", "toll_free" or "short_code".
            campaign_id: Only numbers in this campaign, a UUID.
            search: Only numbers that have this text in the number or, in upper or lower case, in the label: 1 to
                255 characters.
        """
        cursor: str | None = None
        while True:
            page = self.list_numbers(
                limit=100,
                cursor=cursor,
                number_type=number_type,
                campaign_id=campaign_id,
                search=search,
                deadline_seconds=deadline_seconds,
            )
            yield from page.data
            cursor = page.meta.next_cursor
            if cursor is None:
                return

    def get_number(self, id: str, *, deadline_seconds: float | None = None) -> PhoneNumber:
        """Returns one of the organization's numbers.

        The API key needs the scope `numbers:read`.

        Args:
            id: The id of the number's assignment, a UUID.

        Returns:
            One of the organization's numbers.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return self._send(Call("GET", path_of("/v1/phone-numbers/{id}", id=id), PhoneNumber), deadline_seconds)

    def update_number(
        self,
        id: str,
        *,
        inbound_url: str | None = None,
        status_url: str | None = None,
        label: str | None = None,
        campaign_id: str | None = None,
        idempotency_key: str | None = None,
        deadline_seconds: float | None = None,
    ) -> PhoneNumber:
        """Changes the settings of a number.

        The API key needs the scope `numbers:write`.

        Args:
            id: The id of the number's assignment, a UUID.
            inbound_url: The URL that receives inbound messages and calls. It follows the rules of an order, or is
                "" to remove the URL.
            status_url: The URL that receives delivery reports. It follows the rules of an order, or is "" to remove
                the URL.
            label: The name of the number. It follows the rules of an order, or is "" to remove the name.
            campaign_id: The messaging campaign that the number joins. It follows the rules of an order.
                DetachCampaign removes it.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            The number with its new settings.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return self._send(
            Call(
                "PATCH",
                path_of("/v1/phone-numbers/{id}", id=id),
                PhoneNumber,
                body=given(inbound_url=inbound_url, status_url=status_url, label=label, campaign_id=campaign_id),
                is_write=True,
                idempotency_key=idempotency_key,
            ),
            deadline_seconds,
        )

    def release_number(
        self, id: str, *, idempotency_key: str | None = None, deadline_seconds: float | None = None
    ) -> ReleasedNumber:
        """Gives a number back. Its settings are removed, and nothing is refunded. For some time only this organization
        can order the number again. Then every organization can.

        The API key needs the scope `numbers:write`.

        Args:
            id: The id of the number's assignment, a UUID.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            The number was given back.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return self._send(
            Call(
                "DELETE",
                path_of("/v1/phone-numbers/{id}", id=id),
                ReleasedNumber,
                is_write=True,
                idempotency_key=idempotency_key,
            ),
            deadline_seconds,
        )

    def attach_campaign(
        self, id: str, campaign_id: str, *, idempotency_key: str | None = None, deadline_seconds: float | None = None
    ) -> PhoneNumber:
        """Puts a number into a campaign.

        The API key needs the scope `numbers:write`.

        Args:
            id: The id of the number's assignment, a UUID.
            campaign_id: The UUID of the campaign. It follows the rules of an order.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            The number with its campaign.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return self._send(
            Call(
                "POST",
                path_of("/v1/phone-numbers/{id}/campaign", id=id),
                PhoneNumber,
                body=given(campaign_id=campaign_id),
                is_write=True,
                idempotency_key=idempotency_key,
            ),
            deadline_seconds,
        )

    def detach_campaign(
        self, id: str, *, idempotency_key: str | None = None, deadline_seconds: float | None = None
    ) -> PhoneNumber:
        """Takes a number out of its campaign.

        The API key needs the scope `numbers:write`.

        Args:
            id: The id of the number's assignment, a UUID.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            The number, which has no campaign now.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return self._send(
            Call(
                "DELETE",
                path_of("/v1/phone-numbers/{id}/campaign", id=id),
                PhoneNumber,
                is_write=True,
                idempotency_key=idempotency_key,
            ),
            deadline_seconds,
        )

    def bulk_release(
        self, ids: Sequence[str], *, idempotency_key: str | None = None, deadline_seconds: float | None = None
    ) -> ReleaseResult:
        """Gives numbers back, as ReleaseNumber does. An id that is not a number of the organization refuses nothing.

        The API key needs the scope `numbers:write`.

        Args:
            ids: The ids of the numbers' assignments: 1 to 100 UUIDs. An id that is repeated counts once.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            What became of each number.

        Raises:
            ValidationFailed, or another OrderNumbersError.
        """
        return self._send(
            Call(
                "POST",
                "/v1/phone-numbers/bulk/release",
                ReleaseResult,
                body=given(ids=ids),
                is_write=True,
                idempotency_key=idempotency_key,
            ),
            deadline_seconds,
        )


class AsyncClient(AsyncTransport):
    """A client for asyncio. See its base class for the arguments."""

    async def search(
        self,
        *,
        area_code: str | None = None,
        number_type: Literal["local", "toll_free", "short_code"] | None = None,
        pattern: str | None = None,
        sms_enabled: bool | None = None,
        mms_enabled: bool | None = None,
        quantity: int | None = None,
        deadline_seconds: float | None = None,
    ) -> list[AvailableNumber]:
        """Returns numbers that could be ordered now, and reserves none of them. Clients that search at the same time
        get different numbers, if there are enough.

        The API key needs the scope `numbers:write`.

        Args:
            area_code: Only numbers of this area code of the North American Numbering Plan: 3 digits, such as "415"
                for +1415….
            number_type: Only numbers of this type: "local", "toll_free" or "short_code".
            pattern: Only numbers that have these digits somewhere: 1 to 15 digits.
            sms_enabled: Only numbers that can, or cannot, send and receive SMS.
            mms_enabled: Only numbers that can, or cannot, send and receive MMS.
            quantity: The most numbers to return: 1 to 100. When absent, 10.

        Returns:
            Numbers that every organization could order when the search ran. They are not reserved.

        Raises:
            ValidationFailed, or another OrderNumbersError.
        """
        return await self._send(
            Call(
                "POST",
                "/v1/phone-numbers/search",
                list[AvailableNumber],
                body=given(
                    area_code=area_code,
                    number_type=number_type,
                    pattern=pattern,
                    sms_enabled=sms_enabled,
                    mms_enabled=mms_enabled,
                    quantity=quantity,
                ),
            ),
            deadline_seconds,
        )

    async def order(
        self,
        numbers: Sequence[str],
        *,
        inbound_url: str | None = None,
        status_url: str | None = None,
        campaign_id: str | None = None,
        label: str | None = None,
        validate_only: bool | None = None,
        idempotency_key: str | None = None,
        deadline_seconds: float | None = None,
    ) -> OrderNumbersResponse:
        """Assigns the requested numbers to the caller's organization: all of them, or none. The sum of their prices is
        taken from the organization's credit in the same transaction. With `validate_only` nothing is changed.

        The API key needs the scope `numbers:write`.

        Args:
            numbers: The numbers to order: 1 to 100 numbers in E.164 format, such as "+14155550123", without
                repetition.
            inbound_url: The URL that receives the inbound messages and calls of these numbers: an absolute https://
                URL on a public host. It has at most 2048 characters, no user and no fragment. When absent, the
                numbers have no such URL.
            status_url: The URL that receives the delivery reports of these numbers. It follows the rules of
                `inbound_url`. When absent, the numbers have no such URL.
            campaign_id: The messaging campaign that these numbers join: the UUID of a campaign of the caller's
                organization. The campaign must be ACTIVE. The identity status of its brand must be VERIFIED or
                VETTED_VERIFIED. When absent, the numbers join no campaign.
            label: A name that the caller gives to these numbers: 1 to 255 characters. Control characters are not
                allowed, and at least one character must be visible. Spaces, format characters (such as bidi
                controls and zero-width characters), marks, fillers and blank symbols do not count as visible. When
                absent, the numbers have no label.
            validate_only: Whether the order is only checked. The whole decision is made, and nothing is changed.
                Then no idempotency key is used.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            All requested numbers. They now belong to the organization, except with `validate_only`.

        Raises:
            InsufficientCredit, InsufficientInventory, NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return await self._send(
            Call(
                "POST",
                "/v1/phone-numbers/orders",
                OrderNumbersResponse,
                body=given(
                    numbers=numbers,
                    inbound_url=inbound_url,
                    status_url=status_url,
                    campaign_id=campaign_id,
                    label=label,
                    validate_only=validate_only,
                ),
                is_write=True,
                idempotency_key=idempotency_key,
                is_whole=True,
            ),
            deadline_seconds,
        )

    async def find_order(self, idempotency_key: str, *, deadline_seconds: float | None = None) -> FindOrderResponse:
        """Returns the order that was carried out under an idempotency key, with its numbers as they were in its
        response.

        The API key needs the scope `numbers:read`.

        Args:
            idempotency_key: The idempotency key that the order was sent with: 1 to 255 visible ASCII characters,
                without quotes.

        Returns:
            The numbers of an order, in the order of the request, as they were in its response.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return await self._send(
            Call(
                "GET",
                "/v1/phone-numbers/orders",
                FindOrderResponse,
                query=given(idempotency_key=idempotency_key),
                is_whole=True,
            ),
            deadline_seconds,
        )

    async def bulk_order(
        self,
        quantity: int,
        *,
        mode: Literal["atomic"] | None = None,
        area_code: str | None = None,
        number_type: Literal["local", "toll_free", "short_code"] | None = None,
        pattern: str | None = None,
        sms_enabled: bool | None = None,
        mms_enabled: bool | None = None,
        inbound_url: str | None = None,
        status_url: str | None = None,
        campaign_id: str | None = None,
        label: str | None = None,
        idempotency_key: str | None = None,
        deadline_seconds: float | None = None,
    ) -> BulkOrder:
        """Chooses so many numbers and assigns them, as OrderNumbers does: all of them, or none. It takes only numbers
        that every organization could order.

        The API key needs the scope `numbers:write`.

        Args:
            quantity: How many numbers to order: 1 to 100.
            mode: Absent or "atomic": all numbers are assigned, or none.
            area_code: Only numbers of this area code of the North American Numbering Plan: 3 digits, such as "415"
                for +1415….
            number_type: Only numbers of this type: "local", "toll_free" or "short_code".
            pattern: Only numbers that have these digits somewhere: 1 to 15 digits.
            sms_enabled: Only numbers that can, or cannot, send and receive SMS.
            mms_enabled: Only numbers that can, or cannot, send and receive MMS.
            inbound_url: The settings of the numbers. They follow the rules of OrderNumbersRequest.
            status_url: See OrderNumbersRequest.
            campaign_id: See OrderNumbersRequest.
            label: See OrderNumbersRequest.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            A bulk order that was carried out.

        Raises:
            InsufficientCredit, InsufficientInventory, NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return await self._send(
            Call(
                "POST",
                "/v1/phone-numbers/bulk",
                BulkOrder,
                body=given(
                    quantity=quantity,
                    mode=mode,
                    area_code=area_code,
                    number_type=number_type,
                    pattern=pattern,
                    sms_enabled=sms_enabled,
                    mms_enabled=mms_enabled,
                    inbound_url=inbound_url,
                    status_url=status_url,
                    campaign_id=campaign_id,
                    label=label,
                ),
                is_write=True,
                idempotency_key=idempotency_key,
            ),
            deadline_seconds,
        )

    async def get_bulk_order(self, id: str, *, deadline_seconds: float | None = None) -> BulkOrder:
        """Returns a bulk order, as its response was then.

        The API key needs the scope `numbers:read`.

        Args:
            id: The id of the order, a UUID.

        Returns:
            A bulk order that was carried out earlier.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return await self._send(Call("GET", path_of("/v1/phone-numbers/bulk/{id}", id=id), BulkOrder), deadline_seconds)

    async def get_order(self, id: str, *, deadline_seconds: float | None = None) -> GetOrderResponse:
        """Returns an order, with its numbers as they were in its response.

        The API key needs the scope `numbers:read`.

        Args:
            id: The id of the order, a UUID.

        Returns:
            The numbers of an order, in the order of the request, as they were in its response.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return await self._send(
            Call("GET", path_of("/v1/phone-numbers/orders/{id}", id=id), GetOrderResponse, is_whole=True),
            deadline_seconds,
        )

    async def hold(
        self,
        numbers: Sequence[str],
        *,
        minutes: int | None = None,
        idempotency_key: str | None = None,
        deadline_seconds: float | None = None,
    ) -> Hold:
        """Keeps the requested numbers for the caller's organization for some minutes: all of them, or none. Until then
        only that organization can order them.

        The API key needs the scope `numbers:write`.

        Args:
            numbers: The numbers to hold: 1 to 100 numbers in E.164 format, such as "+14155550123", without
                repetition.
            minutes: How long to hold them, in minutes: 1 to 30. When absent, 10.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            The numbers are held.

        Raises:
            InsufficientInventory, LimitExceeded, ValidationFailed, or another OrderNumbersError.
        """
        return await self._send(
            Call(
                "POST",
                "/v1/phone-numbers/holds",
                Hold,
                body=given(numbers=numbers, minutes=minutes),
                is_write=True,
                idempotency_key=idempotency_key,
            ),
            deadline_seconds,
        )

    async def get_hold(self, id: str, *, deadline_seconds: float | None = None) -> Hold:
        """Returns a hold that has not ended.

        The API key needs the scope `numbers:read`.

        Args:
            id: The id of the hold, a UUID.

        Returns:
            A hold that has not ended.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return await self._send(Call("GET", path_of("/v1/phone-numbers/holds/{id}", id=id), Hold), deadline_seconds)

    async def release_hold(
        self, id: str, *, idempotency_key: str | None = None, deadline_seconds: float | None = None
    ) -> ReleasedHold:
        """Ends a hold.

        The API key needs the scope `numbers:write`.

        Args:
            id: The id of the hold, a UUID.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            The hold has ended.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return await self._send(
            Call(
                "DELETE",
                path_of("/v1/phone-numbers/holds/{id}", id=id),
                ReleasedHold,
                is_write=True,
                idempotency_key=idempotency_key,
            ),
            deadline_seconds,
        )

    async def list_numbers(
        self,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        number_type: Literal["local", "toll_free", "short_code"] | None = None,
        campaign_id: str | None = None,
        search: str | None = None,
        deadline_seconds: float | None = None,
    ) -> ListNumbersResponse:
        """Lists the organization's numbers, newest first.

        The API key needs the scope `numbers:read`.

        Args:
            limit: The most numbers to return: 1 to 100. When absent, 20.
            cursor: The `next_cursor` of the page before. When absent, the first page.
            number_type: Only numbers of this type: "local", "toll_free" or "short_code".
            campaign_id: Only numbers in this campaign, a UUID.
            search: Only numbers that have this text in the number or, in upper or lower case, in the label: 1 to
                255 characters.

        Returns:
            A page of the organization's numbers, newest first.

        Raises:
            ValidationFailed, or another OrderNumbersError.
        """
        return await self._send(
            Call(
                "GET",
                "/v1/phone-numbers",
                ListNumbersResponse,
                query=given(
                    limit=limit, cursor=cursor, number_type=number_type, campaign_id=campaign_id, search=search
                ),
                is_whole=True,
            ),
            deadline_seconds,
        )

    async def all_numbers(
        self,
        *,
        number_type: Literal["local", "toll_free", "short_code"] | None = None,
        campaign_id: str | None = None,
        search: str | None = None,
        deadline_seconds: float | None = None,
    ) -> AsyncIterator[PhoneNumber]:
        """Goes through all pages of `list_numbers`.

        Args:
            number_type: Only numbers of this type: "local", "toll_free" or "short_code".
            campaign_id: Only numbers in this campaign, a UUID.
            search: Only numbers that have this text in the number or, in upper or lower case, in the label: 1 to
                255 characters.
        """
        cursor: str | None = None
        while True:
            page = await self.list_numbers(
                limit=100,
                cursor=cursor,
                number_type=number_type,
                campaign_id=campaign_id,
                search=search,
                deadline_seconds=deadline_seconds,
            )
            for row in page.data:
                yield row
            cursor = page.meta.next_cursor
            if cursor is None:
                return

    async def get_number(self, id: str, *, deadline_seconds: float | None = None) -> PhoneNumber:
        """Returns one of the organization's numbers.

        The API key needs the scope `numbers:read`.

        Args:
            id: The id of the number's assignment, a UUID.

        Returns:
            One of the organization's numbers.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return await self._send(Call("GET", path_of("/v1/phone-numbers/{id}", id=id), PhoneNumber), deadline_seconds)

    async def update_number(
        self,
        id: str,
        *,
        inbound_url: str | None = None,
        status_url: str | None = None,
        label: str | None = None,
        campaign_id: str | None = None,
        idempotency_key: str | None = None,
        deadline_seconds: float | None = None,
    ) -> PhoneNumber:
        """Changes the settings of a number.

        The API key needs the scope `numbers:write`.

        Args:
            id: The id of the number's assignment, a UUID.
            inbound_url: The URL that receives inbound messages and calls. It follows the rules of an order, or is
                "" to remove the URL.
            status_url: The URL that receives delivery reports. It follows the rules of an order, or is "" to remove
                the URL.
            label: The name of the number. It follows the rules of an order, or is "" to remove the name.
            campaign_id: The messaging campaign that the number joins. It follows the rules of an order.
                DetachCampaign removes it.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            The number with its new settings.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return await self._send(
            Call(
                "PATCH",
                path_of("/v1/phone-numbers/{id}", id=id),
                PhoneNumber,
                body=given(inbound_url=inbound_url, status_url=status_url, label=label, campaign_id=campaign_id),
                is_write=True,
                idempotency_key=idempotency_key,
            ),
            deadline_seconds,
        )

    async def release_number(
        self, id: str, *, idempotency_key: str | None = None, deadline_seconds: float | None = None
    ) -> ReleasedNumber:
        """Gives a number back. Its settings are removed, and nothing is refunded. For some time only this organization
        can order the number again. Then every organization can.

        The API key needs the scope `numbers:write`.

        Args:
            id: The id of the number's assignment, a UUID.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            The number was given back.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return await self._send(
            Call(
                "DELETE",
                path_of("/v1/phone-numbers/{id}", id=id),
                ReleasedNumber,
                is_write=True,
                idempotency_key=idempotency_key,
            ),
            deadline_seconds,
        )

    async def attach_campaign(
        self, id: str, campaign_id: str, *, idempotency_key: str | None = None, deadline_seconds: float | None = None
    ) -> PhoneNumber:
        """Puts a number into a campaign.

        The API key needs the scope `numbers:write`.

        Args:
            id: The id of the number's assignment, a UUID.
            campaign_id: The UUID of the campaign. It follows the rules of an order.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            The number with its campaign.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return await self._send(
            Call(
                "POST",
                path_of("/v1/phone-numbers/{id}/campaign", id=id),
                PhoneNumber,
                body=given(campaign_id=campaign_id),
                is_write=True,
                idempotency_key=idempotency_key,
            ),
            deadline_seconds,
        )

    async def detach_campaign(
        self, id: str, *, idempotency_key: str | None = None, deadline_seconds: float | None = None
    ) -> PhoneNumber:
        """Takes a number out of its campaign.

        The API key needs the scope `numbers:write`.

        Args:
            id: The id of the number's assignment, a UUID.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            The number, which has no campaign now.

        Raises:
            NotFound, ValidationFailed, or another OrderNumbersError.
        """
        return await self._send(
            Call(
                "DELETE",
                path_of("/v1/phone-numbers/{id}/campaign", id=id),
                PhoneNumber,
                is_write=True,
                idempotency_key=idempotency_key,
            ),
            deadline_seconds,
        )

    async def bulk_release(
        self, ids: Sequence[str], *, idempotency_key: str | None = None, deadline_seconds: float | None = None
    ) -> ReleaseResult:
        """Gives numbers back, as ReleaseNumber does. An id that is not a number of the organization refuses nothing.

        The API key needs the scope `numbers:write`.

        Args:
            ids: The ids of the numbers' assignments: 1 to 100 UUIDs. An id that is repeated counts once.
            idempotency_key: Of an earlier call, to send that one again. When absent, a new one.

        Returns:
            What became of each number.

        Raises:
            ValidationFailed, or another OrderNumbersError.
        """
        return await self._send(
            Call(
                "POST",
                "/v1/phone-numbers/bulk/release",
                ReleaseResult,
                body=given(ids=ids),
                is_write=True,
                idempotency_key=idempotency_key,
            ),
            deadline_seconds,
        )
