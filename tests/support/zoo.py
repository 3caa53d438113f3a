"""Tiny random models of many architectures, trained and asked for a few tokens: the model zoo.

Every function draws from torch's default generator or from fixed formulas; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

VOCABULARY = 131  # odd sizes reach the tails after the vectors
HIDDEN = 48
LAYERS = 2
HEADS = 4
KEY_HEADS = 2
INTERMEDIATE = 100
PAD, START, END = 0, 1, 2

DECODER: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": START,
    "eos_token_id": END,
}

ARCHITECTURES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("Llama", DECODER),
    "gpt2": (
        "GPT2",
        {
            "vocab_size": VOCABULARY,
            "n_embd": HIDDEN,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": 128,
            "resid_pdrop": 0.1,
            "embd_pdrop": 0.1,
            "attn_pdrop": 0.1,
            "pad_token_id": PAD,
            "bos_token_id": START,
            "eos_token_id": END,
        },
    ),
    "qwen2": ("Qwen2", DECODER),
    "qwen3": ("Qwen3", {**DECODER, "head_dim": 12}),
    "gemma2": ("Gemma2", {**DECODER, "head_dim": 12, "sliding_window": 8}),
    "mistral": ("Mistral", {**DECODER, "sliding_window": 8}),
    "phi": ("Phi", {**DECODER, "resid_pdrop": 0.1}),
    "phi3": ("Phi3", DECODER),
    "mixtral": ("Mixtral", {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "t5": (
        "T5",
        {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "d_kv": HIDDEN // HEADS,
            "d_ff": INTERMEDIATE,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "dropout_rate": 0.1,
            "pad_token_id": PAD,
            "eos_token_id": END,
            "decoder_start_token_id": PAD,
        },
    ),
}


def make(name: str, *, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    """The model `name` of `ARCHITECTURES`, its weights drawn from torch's default generator."""
    import transformers

    prefix, options = ARCHITECTURES[name]
    kind = (
        "ForConditionalGeneration"
        if name == "t5"
        else ("LMHeadModel" if name == "gpt2" else "ForCausalLM")
    )
    config = getattr(transformers, f"{prefix}Config")(**options, attn_implementation=attention)
    model = getattr(transformers, f"{prefix}{kind}")(config)
    return model.to(dtype)


def with_adapters(model: Any) -> Any:
    """`model` with LoRA adapters of rank 4, with dropout, in float32."""
    import peft

    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.1,
        target_modules=_linear_names(model),
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def _linear_names(model: Any) -> list[str]:
    known = {"q_proj", "v_proj", "down_proj", "c_attn", "qkv_proj", "q", "v"}
    return sorted({name.split(".")[-1] for name, _ in model.named_modules()} & known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a model is trained.

    Attributes:
        steps: AdamW steps.
        accumulate: Micro-batches a step.
        checkpointing: Whether activations are computed again in the backward pass.
    """

    steps: int = 2
    accumulate: int = 1
    checkpointing: bool = False


def batches(count: int) -> Iterator[dict[str, torch.Tensor]]:
    """`count` batches of 3 rows of 17 tokens, the first row padded on the right."""
    for number in range(count):
        tokens = (torch.arange(51).reshape(3, 17) * (7 + number) + number) % (VOCABULARY - 3) + 3
        mask = torch.ones_like(tokens)
        mask[0, -4:] = 0
        labels = tokens.masked_fill(mask == 0, -100)
        yield {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def train(model: Any, training: Training = Training()) -> list[float]:
    """Train `model` as `training` says; the losses."""
    model.train()
    if training.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    weights = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.01)
    losses = []
    for number, batch in enumerate(batches(training.steps * training.accumulate)):
        loss = model(**batch).loss / training.accumulate
        loss.backward()
        losses.append(loss.item())
        if (number + 1) % training.accumulate == 0:
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return losses


def generate(model: Any, *, sample: bool) -> list[list[int]]:
    """Six tokens after each of two prompts, greedily or sampled."""
    model.eval()
    prompt = (torch.arange(10).reshape(2, 5) * 11) % (VOCABULARY - 3) + 3
    options = (
        {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 0.8}
        if sample
        else {"do_sample": False}
    )
    with torch.no_grad():
        made = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, **options
        )
    return made.tolist()


def digest(model: Any, *results: object) -> str:
    """A digest of every weight's bits and of `results`."""
    sha = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        sha.update(f"{name}{weight.dtype}{tuple(weight.shape)}".encode())
        sha.update(weight.detach().contiguous().view(torch.uint8).numpy().tobytes())
    sha.update(repr(results).encode())
    return sha.hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to use one model.

    Attributes:
        model: A name of `ARCHITECTURES`.
        attention: ``sdpa`` or ``eager``.
        dtype: Of the weights: ``float32`` or ``bfloat16``.
        adapters: Whether LoRA adapters are trained in place of the weights.
        training: How it is trained.
    """

    model: str
    attention: str = "sdpa"
    dtype: str = "float32"
    adapters: bool = False
    training: Training = Training()

    def __str__(self) -> str:
        parts = [self.model, self.attention, self.dtype]
        parts += ["lora"] if self.adapters else []
        parts += ["checkpointing"] if self.training.checkpointing else []
        parts += [f"accumulate-{self.training.accumulate}"] if self.training.accumulate > 1 else []
        return "-".join(parts)

    def run(self) -> str:
        """The digest of the trained weights, the losses and the tokens generated after."""
        torch.manual_seed(0)
        model = make(self.model, attention=self.attention, dtype=getattr(torch, self.dtype))
        if self.adapters:
            model = with_adapters(model)
        losses = train(model, self.training)
        tokens = [generate(model, sample=sample) for sample in (False, True)]
        return digest(model, losses, tokens)


CASES: Sequence[Case] = (
    *(Case(model=name) for name in ARCHITECTURES if name != "gemma2"),
    Case(model="gemma2", attention="eager"),  # it has no other
    Case(model="llama", attention="eager"),
    Case(model="gpt2", attention="eager"),
    Case(model="llama", dtype="bfloat16"),
    Case(model="t5", dtype="bfloat16"),
    Case(model="llama", adapters=True),
    Case(model="llama", adapters=True, dtype="bfloat16"),
    Case(model="gpt2", adapters=True, attention="eager"),
    Case(model="llama", training=Training(checkpointing=True, accumulate=2)),
)
"""What the tests run in every setting."""

Runner = Callable[[], str]


def trainer_digest() -> str:
    """A digest of the LoRA adapters that TRL's SFTTrainer makes of the tiny Llama in 3 steps."""
    import tempfile

    import datasets
    import peft
    import transformers
    import trl

    transformers.set_seed(0)
    model = make("llama")
    rows = [{"input_ids": [3 + (7 * i + j) % 120 for j in range(5 + i % 9)]} for i in range(24)]
    with tempfile.TemporaryDirectory() as folder:
        options = trl.SFTConfig(
            output_dir=folder,
            max_steps=3,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            seed=3,
            disable_tqdm=True,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trainer = trl.SFTTrainer(
            model=model,
            args=options,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=_tokenizer(),
            peft_config=peft.LoraConfig(
                r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
            ),
        )
        loss = trainer.train().training_loss
    return digest(trainer.model, loss)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<s>": START, "</s>": END, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w3")),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )
