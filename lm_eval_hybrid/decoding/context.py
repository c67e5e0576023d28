"""What decodes together: the models, and what decides their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.chooser import Gate, RequiredInputs, Scheduled, Steerer, gate_for
from lm_eval_hybrid.decoding.draft_length import DraftLength
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.request import Prompt, Request, Row
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.decoding.tokens.bridge import Bridge, Choices
from lm_eval_hybrid.models.protocol import Backend, RemoteBackend

Model = Backend | RemoteBackend


@dataclass(frozen=True)
class Verification:
    """The thinking model that verifies drafts.

    Attributes:
        bridge: from the speaker's tokens to its own.
        layer: the hook layer, which the SAE reads.
    """

    model: Model
    bridge: Bridge
    layer: int


@dataclass(frozen=True)
class DecodingContext:
    """The models that decode, and what decides their tokens.

    One model speaks: it drafts, and answers are in its tokens. That is the base model; or the thinking model where the
    policy never reads the base, which then decodes alone as a base model would.

    Attributes:
        speaker: the model that speaks; role: which one it is.
        layer: its hook layer (any, where nothing is steered).
        choices: its tokens that may be chosen; end: its end-of-sequence token, which ends an answer.
        verification: the thinking model that verifies its drafts; None where the speaker decodes alone.
        gate, steerer: see `chooser`; the steerer is None where no candidate is ever made.
        behaviors: the behavior of each category.
        longest_draft: the most tokens drafted before a verification; None: as suits where the speaker runs.
        overlap: whether the speaker drafts on while the thinking model verifies.
    """

    speaker: Model
    role: Literal["base", "thinking"]
    layer: int
    choices: Choices
    end: int | None
    verification: Verification | None
    gate: Gate
    steerer: Steerer | None
    behaviors: Sequence[str]
    draft_length: DraftLength
    longest_draft: int | None = None
    overlap: bool = False

    @classmethod
    def of(
        cls,
        base: Model,
        thinking: Model | None,
        steering: Steering | None,
        policy: Policy,
        longest_draft: int | None,
        overlap: bool | None,
    ) -> "DecodingContext":
        """The context that a policy needs; see `decoder.HybridDecoder` for the arguments and errors."""
        if policy.reads_thinking and thinking is None:
            raise HybridError("this policy reads a thinking model, but there is none; give thinking= or use arm=base")
        if policy.steers and steering is None:
            raise HybridError("this policy steers, but there are no steering vectors; give behaviors= or use arm=base")
        layer, sae_layer = (0, 0) if steering is None else (steering.layer, steering.sae_layer)
        if thinking is not None and not policy.reads_base:
            return cls(
                speaker=thinking,
                role="thinking",
                layer=sae_layer,
                choices=Choices(thinking.tokenizer.get_vocab().values()),
                end=thinking.tokenizer.eos_token_id,
                verification=None,
                gate=Scheduled(0, policy.seed),
                steerer=None,
                behaviors=(),
                draft_length=DraftLength(0),
            )
        choices, verification, ratio = Choices(), None, 0.0
        if thinking is not None and policy.reads_thinking:
            bridge = Bridge(base.tokenizer, thinking.tokenizer)
            choices, ratio = bridge.base_choices, thinking.parameters / base.parameters
            verification = Verification(thinking, bridge, sae_layer)
            overlap = _apart(base, thinking) if overlap is None else overlap
        steerer = None
        if steering is not None and policy.steers:
            steerer = Steerer(policy, steering, choices, base.device)
        return cls(
            speaker=base,
            role="base",
            layer=layer,
            choices=choices,
            end=base.tokenizer.eos_token_id,
            verification=verification,
            gate=gate_for(policy),
            steerer=steerer,
            behaviors=() if steering is None else steering.keys,
            draft_length=DraftLength(ratio),
            longest_draft=longest_draft,
            overlap=verification is not None and bool(overlap),
        )

    @property
    def required(self) -> RequiredInputs:
        """What decisions read at the positions where the gate opens."""
        return RequiredInputs() if self.steerer is None else self.steerer.required

    def cross(self, token: int) -> Sequence[int]:
        """A token of the speaker's, in the ids of the model whose tokenizer decodes the answer."""
        return (token,) if self.verification is None else self.verification.bridge.cross(token)

    def prompt_ids(self, prompt: Prompt) -> Sequence[int]:
        """A prompt in the speaker's ids."""
        return prompt.base_ids if self.role == "base" else prompt.thinking_ids

    def row(self, index: int, request: Request) -> Row:
        """A row that answers a request."""
        # The thinking model's tokenizer knows what a distilled model's special tokens mean: `</think>`.
        model = self.speaker if self.verification is None else self.verification.model
        return Row(index, request, self.prompt_ids(request.prompt), model.tokenizer, self.behaviors)


def _apart(base: Model, thinking: Model) -> bool:
    """Whether the base model can draft in this process while the thinking model runs on another device or server."""
    return not base.is_remote and (thinking.is_remote or base.device != thinking.device)
