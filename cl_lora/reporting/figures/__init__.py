"""The figures of a run, as PNG and SVG, drawn from its files.

A file per figure, each with its registered function; :func:`figure` tells how to add one.
"""

from cl_lora.reporting.figures.budgets import (
    families,
    score_against_parameters,
    score_by_residual,
)
from cl_lora.reporting.figures.by_shots import score_by_shots, score_by_shots_and_data
from cl_lora.reporting.figures.coefficients import coefficients_by_shots, coefficients_over_time
from cl_lora.reporting.figures.costs import score_against_kept
from cl_lora.reporting.figures.drawing import draw_figures, write_figures
from cl_lora.reporting.figures.embedding import embedding_figure, features_in_the_plane
from cl_lora.reporting.figures.final import final_scores
from cl_lora.reporting.figures.forgetting import forgetting_against_score
from cl_lora.reporting.figures.gain import gain_over_classifier
from cl_lora.reporting.figures.interference import (
    harm_and_similarity,
    harm_figure,
    interference,
    similarity_figure,
)
from cl_lora.reporting.figures.marks import marks_of, see, seen_in, tell
from cl_lora.reporting.figures.matrices import draw_matrix, matrix_figure, score_matrices
from cl_lora.reporting.figures.numbers import mean_matrix
from cl_lora.reporting.figures.over_time import score_over_time
from cl_lora.reporting.figures.ranking import distance_from_the_best, draw_ranking
from cl_lora.reporting.figures.registry import FIGURES, FigureInfo, figure
from cl_lora.reporting.figures.robustness import robustness_curves, robustness_to_scale
from cl_lora.reporting.figures.routing import routing
from cl_lora.reporting.figures.spectra import singular_values
from cl_lora.reporting.figures.style import GREY, MARKERS, OKABE_ITO, STYLE, render
from cl_lora.reporting.figures.transfer import transfer_over_tasks
from cl_lora.reporting.figures.weights import weights_and_similarity, weights_figure

__all__ = [
    "FIGURES",
    "GREY",
    "MARKERS",
    "OKABE_ITO",
    "STYLE",
    "FigureInfo",
    "coefficients_by_shots",
    "coefficients_over_time",
    "distance_from_the_best",
    "draw_figures",
    "draw_matrix",
    "draw_ranking",
    "embedding_figure",
    "families",
    "features_in_the_plane",
    "figure",
    "final_scores",
    "forgetting_against_score",
    "gain_over_classifier",
    "harm_and_similarity",
    "harm_figure",
    "interference",
    "marks_of",
    "matrix_figure",
    "mean_matrix",
    "render",
    "robustness_curves",
    "robustness_to_scale",
    "routing",
    "score_against_kept",
    "score_against_parameters",
    "score_by_residual",
    "score_by_shots",
    "score_by_shots_and_data",
    "score_matrices",
    "score_over_time",
    "see",
    "seen_in",
    "similarity_figure",
    "singular_values",
    "tell",
    "transfer_over_tasks",
    "weights_and_similarity",
    "weights_figure",
    "write_figures",
]
