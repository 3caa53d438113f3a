"""The adapters there are, by their names in a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from kolm_build.core.fields import Fields
from kolm_build.steps.adapters._change import Change
from kolm_build.steps.adapters.adalora import AdaLora
from kolm_build.steps.adapters.bitfit import BitFit
from kolm_build.steps.adapters.boft import Boft
from kolm_build.steps.adapters.dora import Dora
from kolm_build.steps.adapters.freeze import Freeze
from kolm_build.steps.adapters.full import Full
from kolm_build.steps.adapters.hra import Hra
from kolm_build.steps.adapters.ia3 import Ia3
from kolm_build.steps.adapters.ln_tuning import LnTuning
from kolm_build.steps.adapters.loha import LoHa
from kolm_build.steps.adapters.lokr import LoKr
from kolm_build.steps.adapters.lora import Lora
from kolm_build.steps.adapters.lora_fa import LoraFrozenA
from kolm_build.steps.adapters.lora_moe import LoraMoe
from kolm_build.steps.adapters.moe_lora import MoeLora
from kolm_build.steps.adapters.oft import Oft
from kolm_build.steps.adapters.olora import Olora
from kolm_build.steps.adapters.pissa import Pissa
from kolm_build.steps.adapters.prefix_tuning import PrefixTuning
from kolm_build.steps.adapters.prompt_tuning import PromptTuning
from kolm_build.steps.adapters.qat import Qat
from kolm_build.steps.adapters.qat_lora import QatLora
from kolm_build.steps.adapters.qlora import Qlora
from kolm_build.steps.adapters.rslora import RankStabilisedLora
from kolm_build.steps.adapters.vera import Vera
from kolm_build.steps.adapters.x_lora import XLora

ADAPTERS: Mapping[str, Callable[[Fields], Change]] = MappingProxyType(
    {
        "adalora": AdaLora.take,
        "bitfit": BitFit.take,
        "boft": Boft.take,
        "dora": Dora.take,
        "freeze": Freeze.take,
        "full": Full.take,
        "hra": Hra.take,
        "ia3": Ia3.take,
        "ln-tuning": LnTuning.take,
        "loha": LoHa.take,
        "lokr": LoKr.take,
        "lora": Lora.take,
        "lora-fa": LoraFrozenA.take,
        "lora-moe": LoraMoe.take,
        "moe-lora": MoeLora.take,
        "oft": Oft.take,
        "olora": Olora.take,
        "pissa": Pissa.take,
        "prefix-tuning": PrefixTuning.take,
        "prompt-tuning": PromptTuning.take,
        "qat": Qat.take,
        "qat-lora": QatLora.take,
        "qlora": Qlora.take,
        "rslora": RankStabilisedLora.take,
        "vera": Vera.take,
        "x-lora": XLora.take,
    }
)
