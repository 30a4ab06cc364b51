"""deploy/compose.yaml: it has the form that Compose expects, and its parts fit together."""

from server.config import Settings
from tests.support.deploy import DEPLOY, ROOT, compose, run

COMPOSE = compose()
SERVICES = COMPOSE["services"]
OURS = {name: each for name, each in SERVICES.items() if name != "postgres"}


def networks_of(name):
    return set(SERVICES[name]["networks"])


def test_compose_accepts_the_file():
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_every_secret_is_a_file_that_git_ignores():
    paths = [f"deploy/{each['file']}" for each in COMPOSE["secrets"].values()]
    assert len(paths) == 2
    assert run("git", "-C", ROOT, "check-ignore", *paths).split() == paths


def test_every_secret_that_a_service_reads_is_given_to_it():
    for service in SERVICES.values():
        files = [value for name, value in service.get("environment", {}).items() if name.endswith("_FILE")]
        assert sorted(files) == [f"/run/secrets/{name}" for name in service.get("secrets", ())]


def test_our_services_can_write_only_to_memory():
    for service in OURS.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "volumes" not in service


def test_only_the_edge_can_be_reached_and_only_from_this_machine():
    assert {name: each["ports"] for name, each in SERVICES.items() if "ports" in each} == {
        "edge": [f"127.0.0.1:{Settings().rest_port}:{Settings().rest_port}"]
    }


def test_servers_without_tls_are_in_networks_of_this_machine_only():
    assert SERVICES["servers"]["environment"]["ORDERNUMBERS_GRPC_INSECURE"] == "true"
    assert all(COMPOSE["networks"][name]["internal"] for name in networks_of("servers"))
    assert networks_of("servers") & networks_of("edge") == {"servers"}
    assert networks_of("postgres") & networks_of("edge") == set()


def test_the_edge_calls_the_servers_by_their_name():
    assert SERVICES["edge"]["environment"]["ORDERNUMBERS_SERVERS"] == f"dns:servers:{Settings().grpc_port}"


def test_they_start_in_order():
    after = {name: each.get("depends_on", {}) for name, each in SERVICES.items()}
    assert after["migrate"] == {"postgres": {"condition": "service_healthy"}}
    assert after["servers"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert after["edge"] == {"servers": {"condition": "service_healthy"}}
    assert all("healthcheck" in SERVICES[name] for name in ("postgres", "servers", "edge"))
