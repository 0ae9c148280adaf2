"""The overlays as kubectl renders them, and the chart as Helm does: valid for several Kubernetes versions, and of one piece.

The API server accepts much that does not work: a selector that matches nothing, a port by a name that no container has,
a reference to a ConfigMap that nobody makes. What the router makes of its arguments is tested in tests/it/deploy.rs.
"""

import base64
import functools
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import unittest

import helm_python
import jsonschema
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "sdk"))

from support import binary  # noqa: E402

OVERLAYS = sorted(path.parent.name for path in ROOT.glob("k8s/overlays/*/kustomization.yaml"))
# From the oldest for which they are meant to the newest that the validator knows.
VERSIONS = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
RULES = ROOT / "deploy" / "prometheus" / "smg-rules.yml"


def strict(properties, required=()):
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def crd(spec):
    """What every object of a custom resource has, around its spec."""
    strings = {"type": "object", "additionalProperties": {"type": "string"}}
    metadata = strict({"name": {"type": "string"}, "namespace": {"type": "string"}, "labels": strings}, ["name"])
    return strict({"apiVersion": {}, "kind": {}, "metadata": metadata, "spec": spec}, ["metadata", "spec"])


LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
DURATION = {"type": "string", "pattern": r"^(\d+(ms|[smhdwy]))+$"}
RULE = strict(
    {
        "alert": {"type": "string"},
        "expr": {"type": "string"},
        "for": DURATION,
        "labels": LABELS,
        "annotations": LABELS,
    },
    ["alert", "expr"],
)
# The part of the Prometheus Operator's schemas that is used here: the validator has none for custom resources.
CRDS = {
    "PodMonitor": crd(
        strict(
            {
                "selector": strict({"matchLabels": LABELS}, ["matchLabels"]),
                "podMetricsEndpoints": {
                    "type": "array",
                    "items": strict(
                        {
                            "port": {"type": "string"},
                            "path": {"type": "string"},
                            "interval": DURATION,
                            "honorLabels": {"type": "boolean"},
                        },
                        ["port"],
                    ),
                },
            },
            ["selector", "podMetricsEndpoints"],
        )
    ),
    "PrometheusRule": crd(
        strict(
            {
                "groups": {
                    "type": "array",
                    "minItems": 1,
                    "items": strict(
                        {"name": {"type": "string"}, "rules": {"type": "array", "items": RULE, "minItems": 1}},
                        ["name", "rules"],
                    ),
                }
            },
            ["groups"],
        )
    ),
}


def validate(documents):
    """Strictly, by the schema of each version: an unknown field is a mistake."""
    for document in documents:
        if document["apiVersion"].startswith("monitoring.coreos.com/"):
            jsonschema.validate(document, CRDS[document["kind"]])
            continue
        for version in VERSIONS:
            # Without a schema it raises, too: nothing goes by unseen.
            kubernetes_validate.validate(document, version, strict=True)


def kustomize(directory):
    text = subprocess.run(["kubectl", "kustomize", directory], capture_output=True, text=True, check=True).stdout
    return [document for document in yaml.safe_load_all(text) if document]


@functools.cache
def rendered(overlay):
    return kustomize(ROOT / "k8s" / "overlays" / overlay)


@functools.cache
def autoscaled():
    """The overlay `ha` with the component `autoscaling`."""
    with tempfile.TemporaryDirectory(dir=ROOT / "k8s") as name:
        document = {"resources": ["../overlays/ha"], "components": ["../components/autoscaling"]}
        (pathlib.Path(name) / "kustomization.yaml").write_text(json.dumps(document))
        return kustomize(name)


def of_kind(overlay, *kinds):
    return [document for document in rendered(overlay) if document["kind"] in kinds]


def template(workload):
    return workload["spec"]["template"]


def router(overlay):
    """The routers' StatefulSet and its one container."""
    (found,) = (workload for workload in of_kind(overlay, "StatefulSet") if workload["metadata"]["name"] == "smg")
    (container,) = template(found)["spec"]["containers"]
    return found, container


def selects(selector, labels):
    return selector.items() <= labels.items()


def each_overlay(test):
    """Runs a test for every overlay, and says which one failed."""

    @functools.wraps(test)
    def run(self):
        for overlay in OVERLAYS:
            with self.subTest(overlay=overlay):
                test(self, overlay)

    return run


class Manifests(unittest.TestCase):
    def test_all_overlays_are_there(self):
        self.assertEqual(OVERLAYS, ["critical", "dev", "encrypted", "ha"])

    @each_overlay
    def test_the_schema_is_kept(self, overlay):
        validate(rendered(overlay))

    def test_the_documents_own_manifests_are_valid(self):
        for name in ("statefulset", "service"):
            document = yaml.safe_load((ROOT / "tests" / "golden" / f"document-{name}.yaml").read_text())
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)

    @each_overlay
    def test_selectors_match_pods_and_no_version(self, overlay):
        pods = [template(workload)["metadata"]["labels"] for workload in of_kind(overlay, "StatefulSet")]
        selectors = {}
        for document in rendered(overlay):
            name, spec = f"{document['kind']} {document['metadata']['name']}", document.get("spec", {})
            match document["kind"]:
                case "Service":
                    selectors[name] = spec["selector"]
                case "NetworkPolicy":
                    selectors[name] = spec["podSelector"]["matchLabels"]
                case "StatefulSet" | "PodDisruptionBudget" | "PodMonitor":
                    selectors[name] = spec["selector"]["matchLabels"]
        self.assertIn("Service smg-mesh", selectors)
        for name, selector in selectors.items():
            self.assertEqual(
                sum(selects(selector, labels) for labels in pods), 1, f"{name} selects {selector} among {pods}"
            )
            self.assertEqual(
                set(selector), {"app.kubernetes.io/name", "app.kubernetes.io/instance"}, f"{name}: not for ever"
            )
        workload, _ = router(overlay)
        for constraint in template(workload)["spec"]["topologySpreadConstraints"]:
            self.assertTrue(
                selects(constraint["labelSelector"]["matchLabels"], template(workload)["metadata"]["labels"])
            )

    @each_overlay
    def test_ports_have_the_names_by_which_they_are_called(self, overlay):
        for service in of_kind(overlay, "Service"):
            (workload,) = (
                workload
                for workload in of_kind(overlay, "StatefulSet")
                if selects(service["spec"]["selector"], template(workload)["metadata"]["labels"])
            )
            (container,) = template(workload)["spec"]["containers"]
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for port in service["spec"]["ports"]:
                self.assertIn(port["targetPort"], ports, service["metadata"]["name"])
            if service["spec"].get("clusterIP") == "None":
                # Clients of a headless Service connect to the container's own port.
                self.assertEqual(
                    [ports[p["targetPort"]] for p in service["spec"]["ports"]],
                    [p["port"] for p in service["spec"]["ports"]],
                )
        _, container = router(overlay)
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            self.assertIn(container[probe]["httpGet"]["port"], ports)
        for monitor in of_kind(overlay, "PodMonitor"):
            for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                self.assertIn(endpoint["port"], ports)
        for policy in of_kind(overlay, "NetworkPolicy"):
            rules = policy["spec"]["ingress"] + policy["spec"]["egress"]
            named = {port["port"] for rule in rules for port in rule["ports"] if isinstance(port["port"], str)}
            self.assertLessEqual(named, ports)

    @each_overlay
    def test_what_is_referred_to_is_made(self, overlay):
        made = {(document["kind"], document["metadata"]["name"]) for document in rendered(overlay)}
        for workload in of_kind(overlay, "StatefulSet"):
            spec = template(workload)["spec"]
            self.assertIn(("Service", workload["spec"]["serviceName"]), made)
            if account := spec.get("serviceAccountName"):
                self.assertIn(("ServiceAccount", account), made)
            for variable in spec["containers"][0]["env"]:
                if reference := variable.get("valueFrom", {}).get("configMapKeyRef"):
                    self.assertIn(("ConfigMap", reference["name"]), made)
        namespaces = {name for kind, name in made if kind == "Namespace"}
        inside = {
            document["metadata"]["namespace"] for document in rendered(overlay) if document["kind"] != "Namespace"
        }
        self.assertEqual(inside, namespaces)

    @each_overlay
    def test_the_mesh_is_found_before_anyone_is_ready(self, overlay):
        (headless,) = (s for s in of_kind(overlay, "Service") if s["metadata"]["name"] == "smg-mesh")
        self.assertEqual(headless["spec"]["clusterIP"], "None")
        self.assertIs(headless["spec"]["publishNotReadyAddresses"], True)
        workload, container = router(overlay)
        self.assertEqual(workload["spec"]["serviceName"], "smg-mesh")
        self.assertEqual(workload["spec"]["podManagementPolicy"], "Parallel")
        self.assertIn("--mesh-peer-urls=smg-mesh:39527", container["args"])

    @each_overlay
    def test_a_disruption_never_takes_two_routers(self, overlay):
        workload, _ = router(overlay)
        (budget,) = of_kind(overlay, "PodDisruptionBudget")
        self.assertEqual(budget["spec"]["maxUnavailable"], 1)
        self.assertGreater(workload["spec"]["replicas"], 1)

    @each_overlay
    def test_pods_keep_to_the_restricted_standard(self, overlay):
        for workload in of_kind(overlay, "StatefulSet"):
            spec = template(workload)["spec"]
            self.assertIs(spec["enableServiceLinks"], False, "SMG_PORT=tcp://… would come in")
            self.assertIs(spec["automountServiceAccountToken"], False)
            self.assertIs(spec["securityContext"]["runAsNonRoot"], True)
            self.assertEqual(spec["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
            for container in spec["containers"]:
                context = container["securityContext"]
                self.assertIs(context["allowPrivilegeEscalation"], False)
                self.assertIs(context["readOnlyRootFilesystem"], True)
                self.assertEqual(context["capabilities"], {"drop": ["ALL"]})
                self.assertNotIn("cpu", container["resources"].get("limits", {}), "throttling is latency")
                self.assertIn("memory", container["resources"]["limits"])

    def test_ha_requires_its_keys_and_spreads(self):
        workload, container = router("ha")
        keys = {
            v["name"]: v["valueFrom"]["secretKeyRef"]
            for v in container["env"]
            if "secretKeyRef" in v.get("valueFrom", {})
        }
        self.assertEqual(set(keys), {"SMG_API_KEY", "SMG_ADMIN_API_KEY", "SMG_MESH_ENCRYPTION_KEY"})
        for name, reference in keys.items():
            self.assertIs(reference["optional"], False, name)
        spread = {
            c["topologyKey"]: c["whenUnsatisfiable"] for c in template(workload)["spec"]["topologySpreadConstraints"]
        }
        self.assertEqual(
            spread, {"kubernetes.io/hostname": "DoNotSchedule", "topology.kubernetes.io/zone": "ScheduleAnyway"}
        )
        self.assertEqual(len(of_kind("ha", "PodMonitor", "PrometheusRule", "NetworkPolicy")), 3)

    @each_overlay
    def test_versions_are_that_of_the_package(self, overlay):
        version = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
        workload, _ = router(overlay)
        self.assertEqual(template(workload)["metadata"]["labels"]["app.kubernetes.io/version"], version)
        self.assertTrue(router("ha")[1]["image"].endswith(f":{version}"))
        self.assertIn(f'org.opencontainers.image.version="{version}"', (ROOT / "Dockerfile").read_text())

    def test_the_rules_are_the_ones_that_were_tested(self):
        (rule,) = of_kind("ha", "PrometheusRule")
        self.assertEqual(rule["spec"], yaml.safe_load(RULES.read_text()))

    def test_the_dashboard_is_the_one_in_grafana(self):
        (dashboard,) = (c for c in of_kind("ha", "ConfigMap") if c["metadata"]["name"] == "smg-dashboard")
        self.assertEqual(dashboard["metadata"]["labels"]["grafana_dashboard"], "1")
        self.assertEqual(dashboard["data"], {"smg.json": (ROOT / "grafana" / "dashboards" / "smg.json").read_text()})

    def test_critical_survives_the_loss_of_two_routers_or_a_zone(self):
        workload, container = router("critical")
        self.assertEqual(workload["spec"]["replicas"], 5)
        spread = {c["whenUnsatisfiable"] for c in template(workload)["spec"]["topologySpreadConstraints"]}
        self.assertEqual(spread, {"DoNotSchedule"})

    @each_overlay
    def test_limits_have_a_share_for_each_router(self, overlay):
        workload, container = router(overlay)
        self.assertEqual(variables(container)["SMG_MESH_EXPECTED_REPLICAS"], str(workload["spec"]["replicas"]))

    def test_encrypted_has_the_files_that_its_variables_name(self):
        workload, container = router("encrypted")
        keys = {"smg-tls": {"tls.crt", "tls.key"}, "smg-mesh-tls": {"tls.crt", "tls.key", "ca.crt"}}
        secrets = {v["name"]: v["secret"]["secretName"] for v in template(workload)["spec"]["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        mounted = {path: secrets[name] for path, name in mounts.items() if name in secrets}
        named = {name: value for name, value in variables(container).items() if "_TLS_" in name}
        self.assertEqual(len(named), 5)
        for name, path in named.items():
            directory, file = path.rsplit("/", 1)
            self.assertIn(file, keys[mounted[directory]], name)
        (service,) = (s for s in of_kind("encrypted", "Service") if s["metadata"]["name"] == "smg")
        self.assertEqual([port["port"] for port in service["spec"]["ports"]], [443])

    @each_overlay
    def test_a_router_accepts_its_arguments_without_a_warning(self, overlay):
        status, messages, config = check_config(rendered(overlay))
        self.assertEqual((status, messages), (0, ""))
        self.assertEqual(len(config["worker-urls"]), 2)
        grace = template(router(overlay)[0])["spec"]["terminationGracePeriodSeconds"]
        self.assertGreaterEqual(grace, config["drain-settle-secs"] + config["shutdown-grace-period-secs"] + 10)

    @each_overlay
    def test_the_data_folder_is_on_a_volume_of_its_own_for_each_router(self, overlay):
        workload, container = router(overlay)
        folder = variables(container).get("SMG_DATA_DIR")
        if overlay == "dev":
            self.assertIsNone(folder, "a trial needs no storage")
            return
        (claim,) = workload["spec"]["volumeClaimTemplates"]
        (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == claim["metadata"]["name"])
        # Inside the volume, because the router wants its folder for itself, and a new file system has lost+found.
        self.assertEqual(str(pathlib.PurePath(folder).parent), mount["mountPath"])
        self.assertEqual(template(workload)["spec"]["securityContext"]["fsGroup"], 65532)

    def test_an_autoscaled_cluster_has_a_share_for_each_router_that_there_may_be(self):
        validate(autoscaled())
        (scaler,) = (d for d in autoscaled() if d["kind"] == "HorizontalPodAutoscaler")
        (workload,) = (d for d in autoscaled() if d["kind"] == "StatefulSet")
        target = scaler["spec"]["scaleTargetRef"]
        self.assertEqual((target["kind"], target["name"]), ("StatefulSet", workload["metadata"]["name"]))
        self.assertNotIn("replicas", workload["spec"], "they would be reset with each apply")
        (container,) = template(workload)["spec"]["containers"]
        most = scaler["spec"]["maxReplicas"]
        self.assertEqual(variables(container)["SMG_MESH_EXPECTED_REPLICAS"], str(most))


def check_config(documents):
    """What `smg check-config` says of a router's arguments and variables, after the kubelet and the Secrets have filled them in."""
    (workload,) = (d for d in documents if d["kind"] == "StatefulSet" and "mock" not in d["metadata"]["name"])
    (container,) = template(workload)["spec"]["containers"]
    maps = {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "ConfigMap"}
    given = {"metadata.name": "smg-0", "status.podIP": "10.0.0.1", "requests.cpu": "1"}
    given |= {"api-key": "client", "admin-api-key": "admin", "mesh-encryption-key": base64.b64encode(b"k" * 32).decode()}
    environment = {}
    with tempfile.TemporaryDirectory() as secrets:
        make_certificate(pathlib.Path(secrets))
        for variable in container["env"]:
            match variable.get("valueFrom", {}):
                case {"configMapKeyRef": {"name": name, "key": key}}:
                    value = maps[name][key]
                case {"fieldRef": {"fieldPath": key}} | {"resourceFieldRef": {"resource": key}} | {"secretKeyRef": {"key": key}}:
                    value = given[key]
                case _:
                    value = re.sub(r"^/etc/smg/[a-z-]+", secrets, variable["value"])
            environment[variable["name"]] = value
        arguments = [re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], text) for text in container["args"]]
        done = subprocess.run([binary(), "check-config", *arguments], env=environment, capture_output=True, text=True)
    return done.returncode, done.stderr, tomllib.loads(done.stdout) if done.returncode == 0 else None


def make_certificate(directory):
    """A certificate for smg-0 that is its own authority, in the files of a Secret."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=smg -days 1"
    names = ["-addext", "subjectAltName=DNS:smg-0"]
    files = ["-keyout", directory / "tls.key", "-out", directory / "tls.crt"]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    shutil.copy(directory / "tls.crt", directory / "ca.crt")


def variables(container):
    """The container's variables that have a value in the manifest."""
    return {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


CHART = ROOT / "deploy" / "helm" / "smg"
# Labels and annotations that only one of the two makes.
OTHERS = re.compile(r"app\.kubernetes\.io/(version|component|part-of|managed-by)|helm\.sh/chart|checksum/workers")


def values(*names):
    """The values of several files, the later ones over the earlier ones, as Helm merges them."""

    def merge(under, over):
        both = dict(under)
        for key, value in over.items():
            both[key] = merge(both[key], value) if isinstance(both.get(key), dict) else value
        return both

    files = (yaml.safe_load((ROOT / "deploy" / "helm" / "values" / f"{name}.yaml").read_text()) for name in names)
    return functools.reduce(merge, files, {})


def chart(values, release="smg", namespace="smg"):
    """The objects that Helm makes of the chart."""
    with helm_python.Chart.load(str(CHART)) as loaded:
        loaded.validate_schema(values)
        texts = loaded.render(values, name=release, namespace=namespace)
    texts = [text for path, text in texts.items() if not path.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def comparable(documents):
    """Objects by kind and name, without what kustomize and Helm do differently by nature: labels that say who made an object, the
    hash in a ConfigMap's name, the namespace (an argument of Helm), and the order of variables."""

    def cleaned(value):
        if isinstance(value, dict):
            kept = {key: cleaned(item) for key, item in value.items() if not OTHERS.fullmatch(key) and key != "namespace"}
            return {key: item for key, item in kept.items() if key != "annotations" or item}
        if isinstance(value, list):
            items = [cleaned(item) for item in value]
            named = all(isinstance(item, dict) and "name" in item for item in items)
            return sorted(items, key=lambda item: item["name"]) if named else items
        return re.sub(r"^(smg-workers)-[0-9a-z]{10}$", r"\1", value) if isinstance(value, str) else value

    objects = {}
    for document in map(cleaned, documents):
        name = (document["kind"], document["metadata"]["name"])
        if document["kind"] != "Namespace" and not name[1].startswith("mock-worker"):
            objects[name] = document
    return objects


class HelmChart(unittest.TestCase):
    maxDiff = None

    def assert_equal(self, ours, expected):
        """As YAML, of which the difference is legible."""
        self.assertEqual(sorted(ours), sorted(expected))
        for name, document in expected.items():
            self.assertEqual(yaml.safe_dump(ours[name]), yaml.safe_dump(document))

    def test_helm_has_nothing_to_complain_about(self):
        found = helm_python.lint(str(CHART))
        # An icon would be a URL, and there is none.
        messages = [m for m in found["messages"] if m["error"] != "icon is recommended"]
        self.assertEqual((found["errors"], messages), ([], []))

    def test_the_chart_makes_what_the_overlays_make(self):
        cases = {
            "dev": (rendered("dev"), values("dev")),
            "ha": (rendered("ha"), values("ha")),
            "critical": (rendered("critical"), values("ha", "critical")),
            "encrypted": (rendered("encrypted"), values("ha", "encrypted")),
            "autoscaling": (autoscaled(), values("ha", "autoscaling")),
        }
        for name, (expected, given) in cases.items():
            with self.subTest(name):
                self.assert_equal(comparable(chart(given)), comparable(expected))

    def test_the_default_values_are_the_base(self):
        given = {"image": {"repository": "smg"}, "workerUrls": ["http://worker1:8000", "http://worker2:8000"]}
        objects, base = comparable(chart(given)), comparable(kustomize(ROOT / "k8s" / "base"))
        # kustomize leaves the tag to the overlays.
        container = objects["StatefulSet", "smg"]["spec"]["template"]["spec"]["containers"][0]
        container["image"] = container["image"].split(":")[0]
        self.assert_equal(objects, base)

    def test_the_schema_is_kept_by_all_settings(self):
        everything = values("ha", "encrypted", "autoscaling") | {
            "imagePullSecrets": [{"name": "registry"}],
            "extraArgs": ["--policy=least_load"],
            "extraEnv": [{"name": "RUST_LOG", "value": "debug"}],
            "nodeSelector": {"pool": "routers"},
            "tolerations": [{"key": "routers", "operator": "Exists"}],
            "priorityClassName": "high",
            "drain": {"settleSeconds": 15, "graceSeconds": 600},
            "service": {"type": "LoadBalancer", "port": 8443, "annotations": {"a": "b"}},
            "workerUrls": [],
            "persistence": {"enabled": True, "size": "2Gi", "storageClassName": "fast"},
        }
        documents = chart(everything, release="prod", namespace="routers")
        validate(documents)
        (workload,) = (d for d in documents if d["kind"] == "StatefulSet")
        spec = template(workload)["spec"]
        (container,) = spec["containers"]
        self.assertEqual(spec["terminationGracePeriodSeconds"], 640)
        self.assertEqual(check_config(documents)[:2], (0, ""))
        known = variables(container)
        self.assertEqual((known["SMG_DRAIN_SETTLE_SECS"], known["SMG_SHUTDOWN_GRACE_PERIOD_SECS"]), ("15", "600"))
        self.assertIn("--policy=least_load", container["args"])
        self.assertIn("--mesh-peer-urls=prod-smg-mesh:39527", container["args"])
        self.assertFalse([a for a in container["args"] if a.startswith("--worker-urls")])
        self.assertEqual({d["metadata"]["name"].split("-mesh")[0] for d in documents} - {"prod-smg-dashboard"}, {"prod-smg"})

    def test_alerts_link_to_their_runbooks_where_the_docs_are_published(self):
        given = values("ha")
        given["monitoring"] = {"enabled": True, "docsUrl": "https://docs.example.com/smg"}
        (rule,) = (d for d in chart(given) if d["kind"] == "PrometheusRule")
        alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
        found = [alert["annotations"]["runbook_url"] for alert in alerts if "runbook_url" in alert["annotations"]]
        # The high-availability document's own two alerts name none.
        self.assertEqual(len(found), len(alerts) - 2)
        for url in found:
            self.assertRegex(url, r"^https://docs\.example\.com/smg/runbooks/[a-z]+\.md#smg[a-z]+$")

    def test_wrong_values_are_refused(self):
        for wrong in (
            {"replicas": 3},
            {"workerUrls": ["gpu-1:8000"]},
            {"spread": {"hosts": "Never"}},
            {"drain": {"settleSeconds": "5s"}},
            {"persistence": {"size": "big"}},
            {"monitoring": {"docsUrl": "docs.example.com"}},
        ):
            with self.subTest(wrong), self.assertRaises(helm_python.HelmError):
                chart(wrong)

    def test_the_chart_has_the_version_of_the_package(self):
        version = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
        about = yaml.safe_load((CHART / "Chart.yaml").read_text())
        self.assertEqual((about["version"], about["appVersion"]), (version, version))


if __name__ == "__main__":
    unittest.main()
