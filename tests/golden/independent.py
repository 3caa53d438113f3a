"""A second implementation of the hashed formats, from spec/ alone: it imports nothing of ours."""

import hashlib
import json
import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

import cbor2
from blake3 import blake3

KINDS = (
    *("tree", "derivation", "resolved", "realisation", "environment"),
    *("weights", "row", "rows", "machine", "memo", "kolmpack"),
)
CONTEXTS = {kind: f"kolm_build 2026 {kind} v1" for kind in KINDS}
CONTEXTS["recipe"] = "kolm_build 2026 recipe section v1"
CONTEXTS["federated_round"] = "kolm_build 2026 federated round v1"


def plain(noted):
    """A value from the notation of the vector files."""
    if isinstance(noted, list):
        return [plain(item) for item in noted]
    if not isinstance(noted, dict):
        return noted
    ((kind, item),) = noted.items()
    if kind == "map":
        return {name: plain(value) for name, value in item.items()}
    return bytes.fromhex(item) if kind == "bytes" else int(item)


def encode(value):
    return cbor2.dumps(value, canonical=True)


def b3(data):
    return "b3:" + blake3(data).hexdigest()


def record_digest(value, kind):
    return "b3:" + blake3(encode(value), derive_key_context=CONTEXTS[kind]).hexdigest()


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def merkle_root(leaves):
    if len(leaves) < 2:
        return hashlib.sha256(b"".join(b"\0" + leaf for leaf in leaves)).digest()
    half = 1 << (len(leaves) - 1).bit_length() - 1
    both = merkle_root(leaves[:half]) + merkle_root(leaves[half:])
    return hashlib.sha256(b"\1" + both).digest()


def is_holdout(key, seed, modulus):
    number = int(hashlib.sha256(encode(key) + seed.encode()).hexdigest(), 16)
    return number % modulus == 0


def dataset_line(vector):
    """The line of a row and what is compared of it, as spec/dataset.md says."""
    row = {name: normal(value) for name, value in vector["row"].items()}
    keys = {"margin": "", "weight": "1", "reference": "", "fields": ""} | vector["keys"]
    said = {
        name: filled(normal(keys[name]), row) for name in keys if name not in ("steps", "labels")
    }
    prompt = said["text" if vector["schema"] == "texts" else "prompt"]
    turns = [("system", vector["system"]), ("user", prompt)]
    own = {
        "answers": lambda: {"answer": said["answer"]},
        "texts": lambda: {"text": prompt},
        "pairs": lambda: (
            {name: said[name] for name in ("chosen", "rejected")}
            | {"margin": decimal(said["margin"])}
        ),
        "feedback": lambda: {
            "answer": said["answer"],
            "good": said["good"] == "true",
            "weight": decimal(said["weight"]),
        },
        "prompts": lambda: {
            "reference": said["reference"],
            "fields": {name: row[name] for name in keys["fields"].split("\n") if name},
        },
        "rationales": lambda: {name: said[name] for name in ("answer", "rationale")},
        "steps": lambda: {"steps": row[keys["steps"]], "labels": vector["row"][keys["labels"]]},
    }
    value = own[vector["schema"]]() | {
        "group": row[vector["group"]] if vector["group"] else "",
        "messages": [{"role": role, "content": text} for role, text in turns if text],
    }
    if vector["schema"] == "texts":
        value["messages"] = []
    name = sha256(encode(value))
    template = keys["text" if vector["schema"] == "texts" else "prompt"]
    content = "\n".join(row[column] for column in dict.fromkeys(columns(template)))
    return canonical_json(value | {"id": name}), canonical_json({"content": content, "id": name})


def canonical_json(value):
    """For values whose keys are ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def normal(value):
    if isinstance(value, list):
        return [normal(item) for item in value]
    text = value if isinstance(value, str) else json.dumps(value)
    return unicodedata.normalize("NFC", text)


def columns(template):
    return re.findall(r"{([^{}]+)}", template.replace("{{", "").replace("}}", ""))


def filled(template, row):
    parts = re.split(r"({{|}}|{[^{}]+})", template)
    return "".join(
        {"{{": "{", "}}": "}"}.get(p) or (row[p[1:-1]] if p[:1] == "{" else p) for p in parts
    )


def decimal(text):
    return f"{Decimal(text).normalize():f}" if text else ""


def four_places(fraction):
    """Half to even, as Fraction rounds."""
    return f"{round(fraction * 10_000) / 10_000:.4f}"


def against(used, budget):
    over = Fraction(used - budget, budget)
    return four_places(Fraction(1) if over <= 0 else Fraction(2.0 ** -float(min(over, 100))))


def kscore(e):
    """Terms, latency, cost and K from the evidence `e`."""
    ceil = lambda number, by: -(-number // by)  # noqa: E731
    latency = max(
        ceil(e["flops_per_request"] * 10**6, e["device_flops_per_s"]),
        ceil(e["bytes_per_request"] * 10**6, e["device_bytes_per_s"]),
    )
    cost = ceil(latency * 1000 * e["device_microusd_per_hour"], 3_600_000_000)
    terms = {
        "accuracy": four_places(Fraction(e["correct"], e["rows"])),
        "size": against(e["weight_bytes"], e["size_budget_bytes"]),
        "latency": against(latency, e["latency_budget_us"]),
        "cost": against(cost, e["cost_budget_microusd"]),
        "coverage": four_places(Fraction(e["verified"], e["rows"])),
    }
    weighted = sum(
        Fraction(15 + 25 * (name == "accuracy"), 100) * Fraction(term)
        for name, term in terms.items()
    )
    base = e["base_correct"]
    return {
        "format": "kscore/1",
        "k": four_places(weighted),
        "terms": terms,
        "base_accuracy": None if base is None else four_places(Fraction(base, e["rows"])),
        "latency_us": latency,
        "cost_microusd": cost,
        "evidence": e,
    }
