"""A small Llama with weights made by a formula, whose tokens are words.

One layer of width 64. Its vocabulary is the commonest words of the ICD-10-CM table's descriptions,
the answers, and questions: a word and its question mark are one token. Any other word is one token
for what is unknown. A question's vector begins as that of all questions, plus a little of its own,
so what a model learns of some questions holds for others. The template adds nothing, so the last
token of a prompt is its last word. Weights come from SHAKE-256 of the tensor's name: nothing to
download and nothing to trust. Standard library only.
"""

import json
import math
import struct
from collections.abc import Mapping
from hashlib import shake_256
from pathlib import Path

Json = dict[str, object]
Shapes = Mapping[str, tuple[int, ...]]

WORDS = "model.embed_tokens.weight"
HIDDEN, INTERMEDIATE, LAYERS, HEADS = 64, 128, 1, 4
WINDOW = 64
SPECIALS = ("<s>", "</s>", "<pad>", "<unk>")
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
ANSWERS = "yes no germs tumour eyes circulation skeleton pregnancy injury cause : , . ( ) - /"
QUESTIONS = (
    "side? chapter? left? right? unspecified? germs? tumour? eyes? circulation? skeleton? "
    "pregnancy? injury? cause?"
)
COMMON = """
of unspecified other left right and with fracture eye to in specified foot hand neoplasm lower
disorders chronic due shoulder degree bilateral upper body ankle by acute malignant hip ear
effect knee disease wrist toxic foreign disorder elbow without congenital laceration leg joint
superficial syndrome finger for eyelid elsewhere classified burn arm arthritis dislocation
region not the site poisoning displaced bone corrosion or trimester level bite traumatic
diseases toe secondary artery ulcer forearm muscle third first induced wound gout thigh limb
open subluxation at external second rheumatoid type assault nondisplaced pressure acquired
sprain breast end contact vein femur benign cervical cell nerve shaft encounter part newborn
juvenile rupture sites undetermined tibia humerus history contusion cyst osteomyelitis corneal
osteonecrosis involving vertebra blood lymphoma multiple nail abscess complications hemorrhage
thumb myositis radius idiopathic physeal related abuse ulna infection stage self harm
intentional neck tendon following personal embolism on amputation arthropathy drug thoracic
primary wall drugs damage complete cord synovitis adverse back head lacrimal spinal pain
anterior skin retinal absence fibula renal puncture endometriosis ligament complicating otitis
tissue stenosis underdosing gland nontraumatic partial lumbar necrosis heart carcinoma kidney
status remission system accidental deformity posterior malformations non thorax fistula from
infective dependence exposure abdominal thrombosis nonvenomous pulmonary abnormal accident
loss pathological mechanical situ middle lung maternal parts bursitis use cerebral diabetes
fall recurrent deficiency mellitus failure intestinal spontaneous urinary cataract
constriction abrasion lateral degeneration injuries alcohol behavior insect blister major
nonthermal activity vascular central organs leukemia osteoarthritis arthropathies complication
infarction intestine phalanx care crushing male frostbite viral genital orbit defect
respiratory glaucoma great metabolism tract age atrophy deep unintentional tendons medial
transplant colon female index lesser neonatal ring lesion nodes osteitis venom disc
intoxication pelvic effects internal trauma tube optic conjunctivitis lymph operations patella
labor liver ovary pelvis adult dysplasia organ struck extremity small synovium teeth
detachment interstitial intractable osteochondrosis cutaneous angle postprocedural presence
uncertain dermatitis localized displacement follicular injured lip area edema into media
obstruction externa malformation unilateral cocaine dysfunction post family low ossificans
spine tibial cardiac meniscus valve anemia pneumonia vessels current including infections lead
radial screening femoral membrane as buttock face oral peripheral bronchus contracture
retinopathy tuberculosis vessel conjunctival distal inflammatory object puerperium water
associated canal delivery impairment minor occlusion proximal scoliosis tumor uterus
chondrocalcinosis occupant transient vertebrae birth bladder fever gestational hypertrophy
melanoma moderate placenta stress opioid spleen coma conditions diffuse hepatitis transverse
urethral affected artificial bursa carcinoid cornea deformans fallopian fascia inflammation
nervous tendinitis tenosynovitis ulcerative uncomplicated war aortic lens neoplastic nerves
suspected trunk visual weeks arrest causing cellulitis esophagus intermittent pancreas
periocular cannabis during gestation little calcaneus forms metacarpal process sepsis food
mass military osteopathy popliteal ureter vagina board brain childbirth dementia fire its
previous cartilage compounds deformities hodgkin reduction score vertebral aseptic class
hereditary injuring oblique severe subacute tympanic cavity discharge ectropion hematogenous
metatarsal nose paralytic penis surgery syphilis systemic bones complex iris ischemic
keratitis larynx long retina stricture vision bleeding cervix chorioretinal condyle
degenerative entropion explosion hot interphalangeal mild nihss osseous problems sleep testis
articular headache high ii inhalant migraine neglect place sinus vulva axilla axillary
choroidal defects device harris meningitis retained salter ulnohumeral watercraft eustachian
findings graft involvement separation sequelae thoracolumbar abnormalities air aneurysm front
joints maltreatment sickle ankylosis asphyxiation cysts familial grade hernia instability lump
pre torus vitreous affecting colitis cystic furuncle hypertrophic large lumbosacral myopathy
occurrence poliomyelitis reactive sexual striking supervision talus trachea veins acetabulum
after aorta blindness breakdown carbuncle cerebrovascular duct dystrophy effusion encephalitis
hepatic hypertension legal lymphangitis quadrant segmental venous bypass calcification child
dental inner lagophthalmos overlapping persistent progressiva rheumatic sacral scalp
streptococcal syndromes catheter drowning except generalized intervention iridocyclitis
macular
"""
"""The 600 commonest words of two letters or more, the commonest first."""
VOCABULARY = (*SPECIALS, *ANSWERS.split(), *QUESTIONS.split(), *COMMON.split())
OWN = 0.2
"""What a question's vector has of its own."""


def run(_inputs: Mapping[str, Path], out: Path, _params: Mapping[str, str | int]) -> None:
    """Write the model folder to `out`."""
    write(out / "config.json", config() | IDS)
    write(out / "generation_config.json", IDS)
    write(out / "tokenizer.json", tokenizer())
    write(out / "tokenizer_config.json", tokenizer_config())
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    (out / "model.safetensors").write_bytes(safetensors(shapes()))


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


def config() -> Json:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "float32",
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": WINDOW,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": len(VOCABULARY),
    }


def shapes() -> Shapes:
    """Name to shape of every tensor of the model."""
    layer = {
        "input_layernorm": (HIDDEN,),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
    }
    layer |= {f"self_attn.{part}_proj": (HIDDEN, HIDDEN) for part in "kqvo"}
    words = (len(VOCABULARY), HIDDEN)
    table: dict[str, tuple[int, ...]] = {WORDS: words, "lm_head.weight": words}
    table["model.norm.weight"] = (HIDDEN,)
    for index in range(LAYERS):
        table |= {f"model.layers.{index}.{part}.weight": shape for part, shape in layer.items()}
    return dict(sorted(table.items()))


def safetensors(table: Shapes) -> bytes:
    """The bytes of a float32 safetensors file with the formula's weights."""
    header, data, at = {}, [], 0
    for name, shape in table.items():
        data.append(weights(name, shape))
        end = at + len(data[-1])
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text + b"".join(data)


def weights(name: str, shape: tuple[int, ...]) -> bytes:
    """Ones for a norm; of words their vectors; else values that keep a signal's variance."""
    if len(shape) == 1:
        return struct.pack(f"<{shape[0]}f", *[1.0] * shape[0])
    if name == WORDS:
        values = [value for word in VOCABULARY for value in vector(word)]
    else:
        values = drawn(name, math.prod(shape), math.sqrt(3 / shape[1]))
    return struct.pack(f"<{len(values)}f", *values)


def vector(word: str) -> list[float]:
    """A word's vector, of variance 1; a question's is the mark's, with a little of its own."""
    own = drawn(f"{WORDS} {word}", HIDDEN, math.sqrt(3))
    if not word.endswith("?"):
        return own
    mark = drawn(f"{WORDS} ?", HIDDEN, math.sqrt(3))
    return [shared + OWN * one for shared, one in zip(mark, own, strict=True)]


def drawn(name: str, count: int, bound: float) -> list[float]:
    """Uniform values between `-bound` and `bound`, that follow from the name."""
    draws = struct.unpack(f"<{count}H", shake_256(name.encode()).digest(2 * count))
    return [bound * (draw - 32767.5) / 32768 for draw in draws]


def tokenizer() -> Json:
    """Lower-case words and signs; what is none of the vocabulary is unknown."""
    plain = dict.fromkeys(("normalized", "lstrip", "rstrip", "single_word"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": text, "special": True, **plain}
            for index, text in enumerate(SPECIALS)
        ],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": r"\w+\??|[^\w\s]"},
            "behavior": "Removed",
            "invert": True,
        },
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {text: index for index, text in enumerate(VOCABULARY)},
            "unk_token": "<unk>",
        },
    }


def tokenizer_config() -> Json:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": WINDOW,
        "unk_token": "<unk>",
        **{name.removesuffix("_id"): SPECIALS[index] for name, index in IDS.items()},
    }
