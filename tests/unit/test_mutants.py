"""The mutants of `make test-mutants` fit the code as it is now; whether a test notices them is seen there."""

import pytest

from tests.mutants.__main__ import MUTANTS, ROOT, mutated


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_code(mutant):
    assert mutated(mutant, ROOT)
    assert all((ROOT / tests).exists() for tests in mutant.tests.split())


def test_each_mutant_has_a_name_of_its_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
