"""The overlays as kubectl renders them: valid for several Kubernetes versions, and of one piece.

The API server accepts much that does not work: a selector that matches nothing, a port by a name that no container has,
a reference to a ConfigMap that nobody makes. What the router makes of its arguments is tested in tests/it/deploy.rs.
"""

import functools
import pathlib
import re
import subprocess
import unittest

import jsonschema
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
OVERLAYS = sorted(path.parent.name for path in ROOT.glob("k8s/overlays/*/kustomization.yaml"))
# The oldest for which they are meant, one in between, the newest that the validator knows.
VERSIONS = ("1.30", "1.33", "1.37")
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


@functools.cache
def rendered(overlay):
    text = subprocess.run(
        ["kubectl", "kustomize", ROOT / "k8s" / "overlays" / overlay], capture_output=True, text=True, check=True
    ).stdout
    return [document for document in yaml.safe_load_all(text) if document]


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
    def test_both_overlays_are_there(self):
        self.assertEqual(OVERLAYS, ["dev", "prod"])

    @each_overlay
    def test_the_schema_is_kept(self, overlay):
        for document in rendered(overlay):
            kind = document["kind"]
            if document["apiVersion"].startswith("monitoring.coreos.com/"):
                jsonschema.validate(document, CRDS[kind])
                continue
            for version in VERSIONS:
                # Without a schema it raises, too: nothing goes by unseen.
                kubernetes_validate.validate(document, version, strict=True)

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

    def test_production_requires_its_keys_and_spreads(self):
        workload, container = router("prod")
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
        self.assertEqual(len(of_kind("prod", "PodMonitor", "PrometheusRule", "NetworkPolicy")), 3)

    @each_overlay
    def test_versions_are_that_of_the_package(self, overlay):
        version = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
        workload, _ = router(overlay)
        self.assertEqual(template(workload)["metadata"]["labels"]["app.kubernetes.io/version"], version)
        self.assertTrue(router("prod")[1]["image"].endswith(f":{version}"))
        self.assertIn(f'org.opencontainers.image.version="{version}"', (ROOT / "Dockerfile").read_text())

    def test_the_rules_are_the_ones_that_were_tested(self):
        (rule,) = of_kind("prod", "PrometheusRule")
        self.assertEqual(rule["spec"], yaml.safe_load(RULES.read_text()))

    def test_the_dashboard_is_the_one_in_grafana(self):
        (dashboard,) = (c for c in of_kind("prod", "ConfigMap") if c["metadata"]["name"] == "smg-dashboard")
        self.assertEqual(dashboard["metadata"]["labels"]["grafana_dashboard"], "1")
        self.assertEqual(dashboard["data"], {"smg.json": (ROOT / "grafana" / "dashboards" / "smg.json").read_text()})


if __name__ == "__main__":
    unittest.main()
