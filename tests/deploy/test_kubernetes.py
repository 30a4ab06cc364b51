"""deploy/kubernetes: the API accepts each object, and the objects fit together and are as closed as can be."""

import pytest

from server.config import Settings, settings
from server.run.serve import workers
from tests.support.deploy import OVERLAYS, all_objects, needs_kubectl, objects, rendered, run

OLDEST, NEWEST = "1.30", "1.37"

pytestmark = [needs_kubectl, pytest.mark.parametrize("overlay", OVERLAYS)]


def workloads(overlay):
    return objects(overlay, "Deployment", "Job")


def containers(overlay):
    return [each for workload in workloads(overlay) for each in workload["spec"]["template"]["spec"]["containers"]]


def environment(overlay, container):
    """The settings of a container, from its own list and from the ConfigMaps that it names."""
    maps = {each["metadata"]["name"]: each["data"] for each in objects(overlay, "ConfigMap")}
    found = {}
    for source in container.get("envFrom", ()):
        found |= maps[source["configMapRef"]["name"]]
    return found | {each["name"]: each["value"] for each in container.get("env", ())}


def is_selected(selector, labels):
    """Whether a selector of labels selects these."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", ()))


def ports_of(container):
    """The number of each port, by its name."""
    return {each["name"]: each["containerPort"] for each in container.get("ports", ())}


def selected_ports(overlay, selector):
    """The ports of the pods that a selector selects, as pairs of name and number."""
    found = set()
    for workload in workloads(overlay):
        template = workload["spec"]["template"]
        if is_selected(selector, template["metadata"]["labels"]):
            found.update(*(ports_of(container).items() for container in template["spec"]["containers"]))
    return found


def test_the_api_accepts_each_object(overlay, tmp_path):
    path = tmp_path / "objects.yaml"
    path.write_text(rendered(overlay))
    kinds = {each["kind"] for each in all_objects(overlay)}
    assert kinds >= {"Namespace", "Deployment", "Job", "Service", "PodDisruptionBudget", "NetworkPolicy", "ConfigMap"}
    for version in OLDEST, NEWEST:
        run("kubernetes-validate", "--strict", "--kubernetes-version", version, path)


def test_no_secret_is_in_the_manifests(overlay):
    assert objects(overlay, "Secret") == []


def test_every_pod_is_restricted(overlay):
    """By the Pod Security Standard `restricted`, with a read-only root file system."""
    for workload in workloads(overlay):
        pod = workload["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(overlay):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    (namespace,) = objects(overlay, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_every_container_has_requests_and_limits(overlay):
    for container in containers(overlay):
        assert {name: set(each) for name, each in container["resources"].items()} == {
            "requests": {"cpu", "memory"},
            "limits": {"cpu", "memory"},
        }


def test_envoy_refuses_calls_before_the_kernel_kills_it(overlay):
    (edge,) = (each for each in containers(overlay) if each["name"] == "edge")
    limit_mb = int(edge["resources"]["limits"]["memory"].removesuffix("Mi"))
    assert limit_mb >= Settings().edge_memory_mb_max + 256


def test_every_file_that_a_setting_names_is_mounted(overlay):
    for workload in workloads(overlay):
        pod = workload["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        assert set(mounts) == {each["name"] for each in pod["volumes"]}
        files = [value for value in environment(overlay, container).values() if value.startswith("/")]
        assert [path for path in files if path.rpartition("/")[0] not in mounts.values()] == []


def test_servers_and_edges_agree_about_tls(overlay):
    of_pods = {each["name"]: environment(overlay, each) for each in containers(overlay)}
    files = {f"ORDERNUMBERS_GRPC_TLS_{name}" for name in ("CERT", "KEY", "CA")}
    for name in ("servers", "edge"):
        assert bool(files & of_pods[name].keys()) != (of_pods[name].get("ORDERNUMBERS_GRPC_INSECURE") == "true")
    assert files & of_pods["servers"].keys() == files & of_pods["edge"].keys()
    assert overlay == "trial" or files <= of_pods["servers"].keys()
    (edge,) = (each for each in containers(overlay) if each["name"] == "edge")
    has_tls = "ORDERNUMBERS_TLS_CERT" in of_pods["edge"]
    assert edge["readinessProbe"]["httpGet"]["scheme"] == ("HTTPS" if has_tls else "HTTP")


def test_only_servers_and_the_migration_have_the_database_url(overlay):
    having = {each["name"] for each in containers(overlay) if "DATABASE_URL_FILE" in environment(overlay, each)}
    assert having == {"servers", "migration"}


def test_the_program_accepts_the_settings_and_listens_on_the_ports(overlay, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("postgresql://localhost/ordernumbers\n")
    listens = {}
    for container in containers(overlay):
        with monkeypatch.context() as patch:
            for name, value in environment(overlay, container).items():
                patch.setenv(name, str(file) if value.startswith("/") else value)
            found = settings.__wrapped__()  # the cache has those of another container
        listens[container["name"]] = found
    # It refuses to listen beyond this machine without TLS, unless it is told to.
    assert len(workers(listens["servers"], listens["servers"].database_url)) == 1
    ports = {each["name"]: ports_of(each) for each in containers(overlay)}
    assert ports["servers"] == {"grpc": listens["servers"].grpc_port, "metrics": listens["servers"].metrics_port}
    assert ports["edge"] == {"public": listens["edge"].rest_port, "metrics": listens["edge"].edge_metrics_port}
    assert listens["servers"].grpc_bind.is_unspecified
    assert listens["edge"].bind.is_unspecified
    assert all(each.metrics_bind.is_unspecified for name, each in listens.items() if name != "migration")


def test_every_service_leads_to_a_port_of_its_pods(overlay):
    for service in objects(overlay, "Service"):
        selector = {"matchLabels": service["spec"]["selector"]}
        assert {each["targetPort"] for each in service["spec"]["ports"]} <= dict(
            selected_ports(overlay, selector)
        ).keys()


def test_the_edge_calls_the_headless_service(overlay):
    (service,) = (each for each in objects(overlay, "Service") if each["spec"].get("clusterIP") == "None")
    (edge,) = (each for each in containers(overlay) if each["name"] == "edge")
    (port,) = service["spec"]["ports"]
    expected = f"dns:{service['metadata']['name']}:{port['port']}"
    assert environment(overlay, edge)["ORDERNUMBERS_SERVERS"] == expected
    assert (port["targetPort"], port["port"]) in selected_ports(overlay, {"matchLabels": service["spec"]["selector"]})


def test_every_probe_is_of_a_port_of_its_container(overlay):
    for container in containers(overlay):
        probes = [probe for name, probe in container.items() if name.endswith("Probe")]
        named = {way["port"] for probe in probes for way in probe.values() if isinstance(way, dict) and "port" in way}
        assert named <= ports_of(container).keys()
        assert named or not probes


def test_a_database_outage_restarts_no_pod(overlay):
    for container in containers(overlay):
        probes = [container[name] for name in ("livenessProbe", "startupProbe") if name in container]
        assert [probe for probe in probes if "tcpSocket" not in probe] == []


def test_a_rolling_update_and_a_drained_node_leave_servers_and_edges(overlay):
    budgets = [each["spec"] for each in objects(overlay, "PodDisruptionBudget")]
    for deployment in objects(overlay, "Deployment"):
        assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        assert deployment["spec"]["minReadySeconds"] > 0
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        (budget,) = (each for each in budgets if is_selected(each["selector"], labels))
        assert budget["maxUnavailable"] == 1
        for spread in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            assert is_selected(spread["labelSelector"], labels)


# ---------------------------------------------------------------- who may connect to whom


def policies(overlay, way):
    """The policies that are for some pods only, with their rules for `ingress` or `egress`."""
    for policy in objects(overlay, "NetworkPolicy"):
        if policy["spec"]["podSelector"]:
            yield policy["spec"]["podSelector"], policy["spec"].get(way, [])


def test_what_is_not_allowed_is_refused(overlay):
    (deny,) = (each["spec"] for each in objects(overlay, "NetworkPolicy") if not each["spec"]["podSelector"])
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_every_port_of_a_policy_is_one_of_its_pods(overlay):
    opened = set()
    for selector, rules in policies(overlay, "ingress"):
        ports = {each["port"] for rule in rules for each in rule["ports"]}
        assert ports <= {number for _, number in selected_ports(overlay, selector)}
        opened |= ports
    assert opened == {port for each in containers(overlay) for port in ports_of(each).values()}


def test_only_edges_may_call_servers_and_only_servers_and_migrations_the_database(overlay):
    may = {
        name: sorted(
            port["port"]
            for selector, rules in policies(overlay, "egress")
            if is_selected(selector, {"app.kubernetes.io/name": "ordernumbers", "app.kubernetes.io/component": name})
            for rule in rules
            for port in rule["ports"]
        )
        for name in ("migration", "servers", "edge")
    }
    assert may == {"migration": [53, 53, 5432], "servers": [53, 53, 5432], "edge": [53, 53, 50051]}


def test_only_edges_are_open_to_everyone(overlay):
    to_all = [rule["ports"] for _, rules in policies(overlay, "ingress") for rule in rules if "from" not in rule]
    assert to_all == [[{"port": Settings().rest_port}]]
