"""The derivations of one recipe and lock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kolm_build.core.bounded import unknown_name
from kolm_build.core.derivation import Derivation, OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.generic_step import NodeOutput, parse_reference
from kolm_build.errors import InvalidRecordError, UsageError

PACKAGE = "package"
QUANTISE = "quantise"
FULL_EVALUATION, FULL_SCORE = "full-evaluation", "full-score"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """The derivations of one recipe and lock.

    Attributes:
        nodes: Node name to derivation, each after all that it needs.
        digests: Node name to the digest of its derivation.
        contents: Trees that must be in the store before anything is built, and where each is
            found.
        targets: What is built unless something else is asked for.
    """

    nodes: Mapping[str, Derivation] = field(hash=False)
    digests: Mapping[str, Digest] = field(hash=False)
    contents: Mapping[Digest, str] = field(hash=False)
    targets: Mapping[str, OutputInput] = field(hash=False)

    @property
    def derivations(self) -> Mapping[Digest, Derivation]:
        """Every derivation by its digest, each after all that it needs."""
        return {self.digests[name]: derivation for name, derivation in self.nodes.items()}

    def find(self, text: str) -> OutputInput:
        """The output that ``node`` or ``node.output`` names.

        Raises:
            UsageError: There is none; the nearest one is suggested.
        """
        try:
            reference = parse_reference(text)
            if isinstance(reference, NodeOutput):
                return output_of(self.nodes, self.digests, reference)
        except InvalidRecordError as error:
            raise UsageError(
                error.reason, expected=error.expected, actual=error.actual, advice=error.advice
            ) from None
        raise UsageError("a path is not a node", actual=repr(text)[:80])


def output_of(
    nodes: Mapping[str, Derivation], digests: Mapping[str, Digest], reference: NodeOutput
) -> OutputInput:
    """The input that an output of one of `nodes` is.

    Raises:
        InvalidRecordError: There is no such node or output.
    """
    if reference.node not in nodes:
        raise unknown_name("node", reference.node, nodes)
    outputs = {name for name, _ in nodes[reference.node].outputs}
    if reference.output not in outputs:
        raise unknown_name(f"output of {reference.node!r}", reference.output, outputs)
    return OutputInput(derivation=digests[reference.node], output=reference.output)
