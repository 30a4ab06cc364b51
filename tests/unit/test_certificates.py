"""When a certificate ends."""

from datetime import UTC, datetime, timedelta

import pytest
import trustme

from server.certificates import end_of

NOW = datetime.now(UTC).replace(microsecond=0)
AUTHORITY = trustme.CA()


@pytest.fixture
def files(tmp_path):
    def files(**options):
        issued = AUTHORITY.issue_cert("ordernumbers-servers", **options)
        chain, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        chain.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return chain, key

    return files


def test_it_is_the_end_of_the_certificate_whoever_signed_it(files):
    end = NOW + timedelta(days=9)
    assert end_of(*files(not_after=end)) == end.timestamp()


def test_it_is_1_once_it_is_past(files):
    assert end_of(*files(not_before=NOW - timedelta(days=9), not_after=NOW - timedelta(days=1))) == 1
