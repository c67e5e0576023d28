"""The result of a discovery run: everything that a bundle and its page are made of."""

from dataclasses import dataclass

from torch import Tensor

from lm_eval_hybrid.bundles.manifest import Behavior
from lm_eval_hybrid.discovery.activations.disagreements import Disagreements
from lm_eval_hybrid.discovery.activations.store import ActivationRows
from lm_eval_hybrid.discovery.calibration import CalibrationResult
from lm_eval_hybrid.discovery.taxonomy.grading import TaxonomyGrades
from lm_eval_hybrid.discovery.taxonomy.sweep import AutoencoderEntry, Sweep
from lm_eval_hybrid.discovery.traces.trace import Trace
from lm_eval_hybrid.discovery.vectors.fitted import FittedVectors, VectorEffects


@dataclass(frozen=True)
class DiscoveryResult:
    """The result of one run.

    Attributes:
        trace_index: [sentences] int64, the trace of each sentence.
        sentences: their text.
        held_out_traces: [traces] bool.
        activations: [sentences, d_thinking] float32, at the chosen layer.
        codes: [sentences, latents] float32, of the chosen autoencoder.
        fits: one for each seed; `fitted` and `effects` are of the chosen one.
    """

    traces: list[Trace]
    trace_index: Tensor
    sentences: list[str]
    held_out_traces: Tensor
    activations: ActivationRows
    codes: Tensor
    sweep: Sweep
    chosen: AutoencoderEntry
    grades: TaxonomyGrades | None
    behaviors: tuple[Behavior, ...]
    gates: Disagreements
    fits: tuple[FittedVectors, ...]
    calibration: CalibrationResult
    effects: VectorEffects

    @property
    def held_out(self) -> Tensor:
        """[sentences] bool."""
        return self.held_out_traces[self.trace_index]

    @property
    def held_out_gates(self) -> Disagreements:
        return self.gates.of(self.held_out_traces.nonzero()[:, 0])

    @property
    def fitted(self) -> FittedVectors:
        return self.fits[self.calibration.fit]
