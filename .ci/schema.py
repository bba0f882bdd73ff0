#!/usr/bin/env python3
"""Reads the facts of Kubernetes' types out of its Go modules and writes crates/api/src/schema/kubernetes.txt.

usage: .ci/schema.py MODULE_CACHE > crates/api/src/schema/kubernetes.txt      (MODULE_CACHE: $(go env GOMODCACHE)/k8s.io)

Names of fields, their numbers in protobuf and whether they are left out when empty come from the struct tags; lists' keys, defaults,
required fields and enumerations from the published OpenAPI documents. crates/api/src/schema.rs describes the format.
"""
import glob, json, os, re, sys

CACHE = sys.argv[1]
V, KUBERNETES = "v0.36.3", "v1.36.3"
API = "admissionregistration/v1 apps/v1 authentication/v1 authorization/v1 autoscaling/v1 autoscaling/v2 batch/v1 certificates/v1 \
coordination/v1 core/v1 discovery/v1 events/v1 flowcontrol/v1 networking/v1 node/v1 policy/v1 rbac/v1 resource/v1 scheduling/v1 storage/v1"
PACKAGES = {f"k8s.io/api/{p}": (p, f"api@{V}/{p}", "io.k8s.api." + p.replace("/", ".")) for p in API.split()}
META = "k8s.io/apimachinery/pkg/apis/meta/v1"
PACKAGES[META] = ("meta/v1", f"apimachinery@{V}/pkg/apis/meta/v1", "io.k8s.apimachinery.pkg.apis.meta.v1")
EXT = "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
PACKAGES[EXT] = ("apiextensions/v1", f"apiextensions-apiserver@{V}/pkg/apis/apiextensions/v1", "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1")
AGG = "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
PACKAGES[AGG] = ("apiregistration/v1", f"kube-aggregator@{V}/pkg/apis/apiregistration/v1", "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1")

# Types with a JSON form of their own.
SPECIAL = {
    "meta/v1.Time": "time", "meta/v1.MicroTime": "microtime", "meta/v1.FieldsV1": "fields",
    "k8s.io/apimachinery/pkg/util/intstr.IntOrString": "intorstring", "k8s.io/apimachinery/pkg/api/resource.Quantity": "quantity",
    "k8s.io/apimachinery/pkg/runtime.RawExtension": "raw", "k8s.io/apimachinery/pkg/types.UID": "string",
    "k8s.io/apimachinery/pkg/types.NodeName": "string", "apiextensions/v1.JSON": "json",
    "apiextensions/v1.JSONSchemaPropsOrBool": "schemaorbool", "apiextensions/v1.JSONSchemaPropsOrArray": "schemaorarray",
    "apiextensions/v1.JSONSchemaPropsOrStringArray": "schemaorstrings",
}
SCALARS = {"string": "string", "bool": "bool", "int32": "int32", "int64": "int64", "float64": "double", "byte": "byte"}

structs, aliases = {}, {}
for path, (short, folder, _) in PACKAGES.items():
    for file in sorted(glob.glob(f"{CACHE}/{folder}/*.go")):
        if re.search(r"(_test|zz_generated.*|generated\.pb|register|.*swagger_doc.*)\.go$", file): continue
        text = open(file).read()
        imports = {}
        for name, target in re.findall(r'^\s*(?:import\s+)?(\w+)?\s*"([^"]+)"', text, re.M):
            imports[name or target.rsplit("/", 1)[-1]] = target
        def qualify(t, imports=imports, short=short):
            t = t.strip()
            if t.startswith("*"): return "*" + qualify(t[1:])
            if t.startswith("[]"): return "[]" + qualify(t[2:])
            m = re.match(r"map\[[\w.]+\](.*)", t)
            if m: return "{}" + qualify(m[1])
            if "." in t:
                package, name = t.split(".")
                target = imports[package]
                return f"{PACKAGES[target][0]}.{name}" if target in PACKAGES else f"{target}.{name}"
            return SCALARS.get(t) or f"{short}.{t}"
        for name, body in re.findall(r"^type (\w+) struct \{\n(.*?)^\}", text, re.M | re.S):
            fields = []
            for line in body.split("\n"):
                line = line.strip()
                m = re.match(r"^(?:(\w+)\s+)?([*\[\]\w.]+)\s+`(.*)`", line)
                if not m: continue
                tags = dict(re.findall(r'(\w+):"([^"]*)"', m[3]))
                if "json" not in tags or tags["json"] == "-": continue
                word, *options = tags["json"].split(",")
                number = tags.get("protobuf", ",0").split(",")[1]
                fields.append(dict(name=word, inline="inline" in options or not word, omit="omitempty" in options, zero="omitzero" in options,
                    type=qualify(m[2]), number=int(number) if number.isdigit() else 0, strategy=tags.get("patchStrategy", ""), key=tags.get("patchMergeKey", "")))
            structs[f"{short}.{name}"] = fields
        for name in re.findall(r"^type (\w+) struct ?\{ ?\}", text, re.M): structs[f"{short}.{name}"] = []
        for name, target in re.findall(r"^type (\w+) ([\[\]\w.*]+)\s*(?://.*)?$", text, re.M):
            if target not in ("struct", "interface"): aliases[f"{short}.{name}"] = qualify(target)

openapi = {}
for file in glob.glob(f"{CACHE}/kubernetes@{KUBERNETES}/api/openapi-spec/v3/*.json"):
    openapi.update(json.load(open(file)).get("components", {}).get("schemas", {}))
# Enumerations: servers publish them, the documents in the source tree don't.
enums, holder, prop = {}, None, None
for line in open(f"{CACHE}/kubernetes@{KUBERNETES}/pkg/generated/openapi/zz_generated.openapi.go"):
    if m := re.match(r"func schema_k8sio_api_(\w+?)_(v\w+?)_(\w+)\(", line): holder = f"{m[1]}/{m[2]}.{m[3]}"
    elif line.startswith("func "): holder = None
    elif m := re.match(r'\t{5}"([\w$]+)": \{', line): prop = m[1]
    elif holder and (m := re.match(r"\s+Enum:\s+\[\]interface\{\}\{(.*)\},", line)):
        enums[holder, prop] = [json.loads(word) for word in re.findall(r'"(?:[^"\\]|\\.)*"', m[1])]

def openapi_name(name):
    package, word = name.rsplit(".", 1)
    return next(prefix for short, _, prefix in PACKAGES.values() if short == package) + "." + word

def resolve(t):
    if t.startswith("*"): return resolve(t[1:])
    if t.startswith("[]"):
        inner = resolve(t[2:])
        return "bytes" if inner == "byte" else "[]" + inner
    if t.startswith("{}"): return "{}" + resolve(t[2:])
    if t in SPECIAL: return SPECIAL[t]
    if t in aliases:
        # A list with a name of its own is a message of its own in protobuf (ExtraValue, Verbs), and a list in JSON.
        inner = resolve(aliases[t])
        return "strings" if inner == "[]string" and t.rsplit(".")[-1] in ("ExtraValue", "Verbs") else inner
    return t

def facts(schema):
    """The marks of a list or map."""
    out = []
    kind = schema.get("x-kubernetes-list-type")
    if kind == "map": out.append("map=" + ",".join(schema["x-kubernetes-list-map-keys"]))
    elif kind: out.append(kind)
    if schema.get("x-kubernetes-map-type"): out.append(schema["x-kubernetes-map-type"])
    return out

# Roots: every kind of the packages, and what is reached from them.
todo = [name for name, fields in structs.items() if any(f["type"].endswith("meta/v1.TypeMeta") for f in fields) and openapi_name(name) in openapi]
todo += ["meta/v1.DeleteOptions", "meta/v1.Status", "meta/v1.TypeMeta", "meta/v1.WatchEvent"]
done, inherited = {}, {}
while todo:
    name = todo.pop()
    if name in done: continue
    if name not in structs: sys.exit(f"no struct {name}")
    schema = openapi.get(openapi_name(name)) or inherited.get(name, {})
    lines = []
    for f in structs[name]:
        t = resolve(f["type"])
        if t == "meta/v1.TypeMeta": lines.append("apiVersion 0 string omitempty\nkind 0 string omitempty".replace("\n", "\n ")); continue
        base = re.sub(r"^(\[\]|\{\})+", "", t)
        if "." in base: todo.append(base)
        if f["inline"] and openapi_name(t) not in openapi: inherited[t] = schema
        if f["inline"]: lines.append(f"- {f['number']} {t}" + (" pointer" if f["type"].startswith("*") else "")); continue
        p = schema.get("properties", {}).get(f["name"])
        marks = []
        if f["omit"]: marks.append("omitempty")
        if f["zero"]: marks.append("omitzero")
        if f["type"].startswith("*"): marks.append("pointer")
        if p:
            if f["name"] in schema.get("required", []): marks.append("required")
            marks += facts(p)
            default = p.get("default", {})
            implied = default in ("", 0, False) and not f["omit"] and not f["type"].startswith("*")
            if default not in ({}, None) and not implied: marks.append("default=" + json.dumps(default, separators=(",", ":")))
            if enum := enums.get((name, f["name"])): marks.append("enum=" + "|".join(enum).replace(" ", "~"))
        elif schema: print(f"{name}.{f['name']} is not in the OpenAPI documents", file=sys.stderr)
        if f["strategy"]: marks.append("patch=" + f["strategy"] + (":" + f["key"] if f["key"] else ""))
        lines.append(" ".join([f["name"], str(f["number"]), t] + marks))
    done[name] = ([name] + ([] if name in inherited else facts(schema)), lines)

for name in sorted(done):
    head, lines = done[name]
    print(" ".join(head))
    for line in lines: print(" " + line)
