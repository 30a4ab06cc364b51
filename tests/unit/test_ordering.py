"""The decision, without a database: examples of each rule, and a simple model that it must agree with."""

from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import Code, Refusal
from server.rules.ordering import decide
from server.rules.values import (
    Account,
    Campaign,
    Idempotency,
    KeyGrant,
    Number,
    Order,
    Placed,
    Replayed,
    Retry,
    Routing,
    State,
    StoredResponse,
)

NOW = datetime(2026, 4, 26, 12, tzinfo=UTC)
ORGANIZATION, OTHER, KEY, CAMPAIGN = (UUID(int=i) for i in range(1, 5))
NUMBERS = ("+14155550100", "+14155550101", "+14155550102")
_ids = count(1000)


def number(price_micros=1_000_000, assignment_id=None, held_by=None, free_at=None):
    return Number("local", True, False, price_micros, assignment_id, held_by, free_at)


def example_order(*numbers, organization_id=ORGANIZATION, **more):
    return Order(
        id=UUID(int=next(_ids)),
        organization_id=organization_id,
        api_key_id=KEY,
        scope="numbers:write",
        request_id="",
        numbers=numbers or NUMBERS[:1],
        assignment_ids=tuple(UUID(int=next(_ids)) for _ in numbers or NUMBERS[:1]),
        **more,
    )


def state(**changes):
    return State(
        **{
            "now": NOW,
            "numbers": {text: number() for text in NUMBERS},
            "accounts": {ORGANIZATION: Account(10_000_000, 5), OTHER: Account(10_000_000, 1)},
            "keys": {KEY: KeyGrant(["numbers:write"], None, None)},
            "campaigns": {(ORGANIZATION, CAMPAIGN): Campaign("ACTIVE", "VERIFIED")},
            **changes,
        }
    )


def refusal(decision):
    assert isinstance(decision, Refusal), decision
    return decision.code, decision.details


def test_an_order_takes_its_numbers_and_its_money():
    (placed,) = decide([example_order(*NUMBERS)], state())
    assert isinstance(placed, Placed)
    assert (placed.total_micros, placed.account) == (3_000_000, Account(7_000_000, 6))
    assert placed.at == NOW


def test_later_orders_see_what_earlier_ones_took():
    first, second, third = decide(
        [example_order(NUMBERS[0]), example_order(NUMBERS[0]), example_order(NUMBERS[1])], state()
    )
    assert isinstance(first, Placed)
    assert refusal(second)[0] is Code.INSUFFICIENT_INVENTORY
    assert third.account == Account(8_000_000, 7)


def test_a_refused_order_takes_nothing():
    refused, placed = decide([example_order(NUMBERS[0], "+19999999999"), example_order(NUMBERS[0])], state())
    assert refusal(refused)[0] is Code.INSUFFICIENT_INVENTORY
    assert placed.account == Account(9_000_000, 6)


def test_a_shortage_names_every_number_in_the_order_of_the_request():
    wanted = ("+19999999999", NUMBERS[1], NUMBERS[0], "+18888888888")
    numbers = {NUMBERS[0]: number(assignment_id=KEY), NUMBERS[1]: number()}
    (refused,) = decide([example_order(*wanted)], state(numbers=numbers))
    assert refused.message == "insufficient inventory: requested 4, available 1"
    assert refused.shortage.available_count == 1
    assert refused.shortage.unavailable == ["+19999999999", NUMBERS[0], "+18888888888"]


@pytest.mark.parametrize(
    ("row", "is_available"),
    [
        (number(), True),
        (number(assignment_id=KEY), False),
        (number(free_at=NOW + timedelta(seconds=1)), False),
        (number(free_at=NOW), True),
        (number(free_at=NOW + timedelta(seconds=1), held_by=ORGANIZATION), True),
        (number(free_at=NOW + timedelta(seconds=1), held_by=OTHER), False),
        (number(free_at=NOW, held_by=OTHER), True),
    ],
)
def test_a_number_is_available_when_neither_assigned_nor_in_quarantine_nor_held_for_another(row, is_available):
    (decision,) = decide([example_order(NUMBERS[0])], state(numbers={NUMBERS[0]: row}))
    assert isinstance(decision, Placed) is is_available


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (KeyGrant(["numbers:write"], None, NOW), Code.UNAUTHORIZED),
        (KeyGrant(["numbers:write"], NOW, None), Code.UNAUTHORIZED),
        (KeyGrant([], NOW, None), Code.UNAUTHORIZED),
        (KeyGrant(["numbers:read"], None, None), Code.FORBIDDEN),
        (KeyGrant([], NOW + timedelta(seconds=1), None), Code.FORBIDDEN),
    ],
)
def test_a_key_must_be_valid_and_then_in_scope(key, code):
    (decision,) = decide([example_order("+19999999999", routing=Routing(campaign_id=OTHER))], state(keys={KEY: key}))
    assert refusal(decision) == (code, None)


def test_a_key_that_is_gone_is_unauthorized():
    (decision,) = decide([example_order()], state(keys={}))
    assert refusal(decision) == (Code.UNAUTHORIZED, None)


@pytest.mark.parametrize(
    ("campaign", "code", "rule"),
    [
        (None, Code.NOT_FOUND, None),
        (Campaign("PENDING", "VERIFIED"), Code.VALIDATION_FAILED, "must be ACTIVE"),
        (Campaign("REJECTED", "UNVERIFIED"), Code.VALIDATION_FAILED, "must be ACTIVE"),
        (Campaign("ACTIVE", "UNVERIFIED"), Code.VALIDATION_FAILED, "brand must be VERIFIED or VETTED_VERIFIED"),
        (Campaign("ACTIVE", "SELF_DECLARED"), Code.VALIDATION_FAILED, "brand must be VERIFIED or VETTED_VERIFIED"),
        (Campaign("ACTIVE", None), Code.VALIDATION_FAILED, "brand must be VERIFIED or VETTED_VERIFIED"),
    ],
)
def test_a_campaign_must_be_ours_active_and_of_a_verified_brand_before_anything_is_said_of_numbers(
    campaign, code, rule
):
    campaigns = (
        {(ORGANIZATION, CAMPAIGN): campaign} if campaign else {(OTHER, CAMPAIGN): Campaign("ACTIVE", "VERIFIED")}
    )
    (decision,) = decide(
        [example_order("+19999999999", routing=Routing(campaign_id=CAMPAIGN))], state(campaigns=campaigns)
    )
    assert refusal(decision) == (code, rule and {"campaign_id": rule})


@pytest.mark.parametrize("identity_status", ["VERIFIED", "VETTED_VERIFIED"])
def test_a_verified_brand_may_send(identity_status):
    campaigns = {(ORGANIZATION, CAMPAIGN): Campaign("ACTIVE", identity_status)}
    (decision,) = decide([example_order(routing=Routing(campaign_id=CAMPAIGN))], state(campaigns=campaigns))
    assert isinstance(decision, Placed)


def test_credit_may_be_spent_to_the_last_micro_and_not_beyond():
    enough, short = (state(accounts={ORGANIZATION: Account(balance, 1)}) for balance in (2_000_000, 1_999_999))
    assert isinstance(decide([example_order(*NUMBERS[:2])], enough)[0], Placed)
    assert refusal(decide([example_order(*NUMBERS[:2])], short)[0]) == (Code.INSUFFICIENT_CREDIT, None)


def test_inventory_is_told_before_credit():
    poor = state(accounts={ORGANIZATION: Account(0, 1)})
    assert refusal(decide([example_order("+19999999999")], poor)[0])[0] is Code.INSUFFICIENT_INVENTORY


@given(
    baskets=st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True)), max_size=30
    ),
    prices=st.lists(st.integers(0, 5), min_size=6, max_size=6),
    balances=st.lists(st.integers(0, 12), min_size=3, max_size=3),
)
def test_a_simple_model_sells_the_same_numbers_to_the_same_buyers(baskets, prices, balances):
    """Six numbers and two that do not exist, three buyers: first come, first served, all or nothing."""
    buyers = [UUID(int=100 + i) for i in range(3)]
    texts = [f"+1415555010{i}" for i in range(8)]
    left, free = list(balances), set(range(6))
    expected = []
    for buyer, basket in baskets:
        cost = sum(prices[i] for i in basket if i < 6)
        sold = set(basket) <= free and cost <= left[buyer]
        if sold:
            free -= set(basket)
            left[buyer] -= cost
        expected.append(sold)

    orders = [example_order(*(texts[i] for i in basket), organization_id=buyers[buyer]) for buyer, basket in baskets]
    decisions = decide(
        orders,
        state(
            numbers={texts[i]: number(price_micros=prices[i]) for i in range(6)},
            accounts={buyer: Account(balance, 0) for buyer, balance in zip(buyers, balances, strict=True)},
        ),
    )

    assert [isinstance(decision, Placed) for decision in decisions] == expected
    for i, buyer in enumerate(buyers):
        mine = [d for d in decisions if isinstance(d, Placed) and d.order.organization_id == buyer]
        assert balances[i] - sum(d.total_micros for d in mine) == left[i]
        assert [d.account.entry_no for d in mine] == list(range(1, len(mine) + 1))
        if mine:
            assert mine[-1].account.balance_micros == left[i]


# ---------------------------------------------------------------- idempotency keys, and rows that are busy


def keyed(*numbers, key="k", asked=b"this", **more):
    return example_order(*numbers, idempotency=Idempotency(key, asked), **more)


def remembering(**changes):
    return state(stored_responses={(ORGANIZATION, "k"): StoredResponse(b"this", b"answer")}, **changes)


def test_what_was_answered_under_a_key_is_answered_again_and_takes_nothing():
    sold = {text: number(assignment_id=KEY) for text in NUMBERS}
    poor = {ORGANIZATION: Account(0, 5)}
    again, other = decide([keyed(), example_order(NUMBERS[1])], remembering())
    assert again == Replayed(b"answer")
    assert other.account == Account(9_000_000, 6)
    assert decide([keyed()], remembering(numbers=sold, accounts=poor, campaigns={})) == [Replayed(b"answer")]


def test_a_key_used_for_another_order_is_refused():
    (refused,) = decide([keyed(asked=b"that")], remembering())
    assert refusal(refused)[0] is Code.IDEMPOTENCY_KEY_REUSED


def test_a_key_is_its_organizations_own():
    (placed,) = decide([keyed(organization_id=OTHER)], remembering())
    assert isinstance(placed, Placed)


def test_a_replay_needs_a_key_that_is_valid_now():
    revoked = {KEY: KeyGrant(["numbers:write"], None, NOW)}
    unscoped = {KEY: KeyGrant(["numbers:read"], None, None)}
    for keys, code in ((revoked, Code.UNAUTHORIZED), (unscoped, Code.FORBIDDEN)):
        assert refusal(decide([keyed()], remembering(keys=keys))[0])[0] is code


@pytest.mark.parametrize("asked", [b"this", b"that"])
def test_of_two_orders_with_one_key_the_second_is_retried(asked):
    first, second, third = decide([keyed(), keyed(NUMBERS[1], asked=asked), keyed(NUMBERS[1], key="j")], state())
    assert isinstance(first, Placed)
    assert second == Retry()
    assert isinstance(third, Placed)


def test_a_refusal_leaves_the_key_free():
    refused, placed = decide([keyed("+19999999999"), keyed()], state())
    assert refusal(refused)[0] is Code.INSUFFICIENT_INVENTORY
    assert isinstance(placed, Placed)


def test_an_order_of_rows_locked_elsewhere_is_retried():
    numbers = {NUMBERS[1]: number()}
    busy = state(numbers=numbers, locked_elsewhere=frozenset({NUMBERS[0], OTHER}))
    orders = [
        example_order(NUMBERS[0], NUMBERS[1]),
        example_order(NUMBERS[1], organization_id=OTHER),
        example_order(NUMBERS[1]),
    ]
    first, second, third = decide(orders, busy)
    assert (first, second) == (Retry(), Retry())
    assert isinstance(third, Placed)


def test_a_replay_needs_no_number():
    assert decide([keyed()], remembering(locked_elsewhere=frozenset(NUMBERS), numbers={})) == [Replayed(b"answer")]
