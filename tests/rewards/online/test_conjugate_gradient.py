import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpovi_lightning.errors import TrainingError
from grpovi_lightning.rewards.online.conjugate_gradient import conjugate_gradient

SEEDS = st.integers(0, 10_000)


def positive_definite(n, seed, smallest=0.1, largest=10.0):
    """A random matrix with eigenvalues between the two, and a right-hand side."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return basis * rng.uniform(smallest, largest, size=n) @ basis.T, rng.normal(size=n)


def solve(matrix, right_hand_side, n_steps, dtype=torch.float64, floor=0.1):
    return counted(matrix, right_hand_side, n_steps, dtype, floor)[0]


def counted(matrix, right_hand_side, n_steps, dtype=torch.float64, floor=0.1):
    """What was found, and how many products with the matrix it took."""
    matrix, vectors = torch.tensor(matrix, dtype=dtype), []

    def product(vector):
        vectors.append(vector)
        return matrix.mv(vector)

    found = conjugate_gradient(product, torch.tensor(right_hand_side, dtype=dtype), n_steps, floor)
    return found, len(vectors)


@given(n=st.integers(1, 9), seed=SEEDS)
def test_as_many_steps_as_dimensions_solve_the_system(n, seed):
    matrix, b = positive_definite(n, seed)
    found, n_products = counted(matrix, b, n)

    np.testing.assert_allclose(found.solution, np.linalg.solve(matrix, b), rtol=0, atol=1e-9 * np.abs(b).max() / 0.1)
    assert not found.negative_curvature and n_products <= n


@given(n=st.integers(3, 12), k=st.integers(1, 4), seed=SEEDS)
def test_k_steps_minimise_the_error_in_the_norm_of_a_over_the_krylov_space(n, k, seed):
    matrix, b = positive_definite(n, seed)
    krylov, _ = np.linalg.qr(np.stack([np.linalg.matrix_power(matrix, i) @ b for i in range(min(k, n))], axis=1))
    root = np.linalg.cholesky(matrix).T  # (x - x*)' A (x - x*) = |root (x - x*)|^2
    weights, *_ = np.linalg.lstsq(root @ krylov, root @ np.linalg.solve(matrix, b), rcond=None)

    found = solve(matrix, b, k).solution

    np.testing.assert_allclose(found, krylov @ weights, rtol=0, atol=1e-7 * np.linalg.norm(b))


def test_single_precision_is_as_near_as_its_rounding():
    matrix, b = positive_definite(40, seed=3, smallest=1.0)

    found = solve(matrix, b, 40, torch.float32).solution

    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, np.linalg.solve(matrix, b), rtol=0, atol=2e-6 * np.linalg.norm(b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_beyond_the_solution_are_not_taken(dtype):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, 50))
    matrix, b = z.T @ z + 0.1 * np.eye(50), z.T @ rng.normal(size=3)  # b lies in three eigenvectors

    found, n_products = counted(matrix, b, 200, dtype)

    np.testing.assert_allclose(found.solution, np.linalg.solve(matrix, b), rtol=0, atol=10 * torch.finfo(dtype).eps)
    assert 3 <= n_products <= 6
    assert not found.negative_curvature


def test_a_zero_gradient_takes_no_step():
    found, n_products = counted(np.eye(4), np.zeros(4), 3)

    assert n_products == 0
    assert found.solution.tolist() == [0.0] * 4
    assert not found.negative_curvature


def test_tiny_gradients_do_not_underflow_in_single_precision():
    matrix, b = positive_definite(6, seed=1)
    scale = 2.0**-90

    found, n_products = counted(matrix, b * scale, 4, torch.float32)

    torch.testing.assert_close(found.solution / scale, solve(matrix, b, 4, torch.float32).solution, rtol=0, atol=0)
    assert n_products == 4


@pytest.mark.parametrize(
    ("curvatures", "b", "expected"),
    [
        ((1.0, -3.0), (2.0, 2.0), 2.0),  # the curvature along b is (1 - 3) / 2, and x is b over its size
        ((1.0, -9.0), (2.0, 2.0), 0.5),
        ((-0.25, -0.25), (2.0, 2.0), 4.0),  # the floor
        ((3.0, -3.0), (2.0, 2.0), 4.0),  # none at all
    ],
)
def test_a_gradient_of_negative_curvature_is_divided_by_its_size_or_the_floor(curvatures, b, expected):
    found, n_products = counted(np.diag(curvatures), np.array(b), 3, floor=0.5)

    assert found.solution.tolist() == [expected, expected]
    assert found.negative_curvature and n_products == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(n=st.integers(1, 8), k=st.integers(1, 8), power=st.integers(-30, 30), seed=SEEDS)
def test_the_answer_does_not_depend_on_the_scale_of_the_function(dtype, n, k, power, seed):
    rng = np.random.default_rng(seed)
    matrix, b = rng.normal(size=(n, n)), rng.normal(size=n)
    matrix, scale = matrix + matrix.T, 2.0**power

    (found, n_products), (scaled, n_scaled) = (counted(s * matrix, s * b, k, dtype, s * 0.1) for s in (1.0, scale))

    assert torch.equal(found.solution, scaled.solution)
    assert (found.negative_curvature, n_products) == (scaled.negative_curvature, n_scaled)


def test_the_floor_has_no_say_where_the_first_curvature_is_positive():
    for matrix in (positive_definite(6, seed=2)[0], np.diag([5.0, 4.0, -1.0])):
        b = np.array([1.0, 1.0, 0.1, 0.2, 0.3, 0.4])[: len(matrix)]
        assert torch.equal(solve(matrix, b, 3, floor=1e-6).solution, solve(matrix, b, 3, floor=1e6).solution)


def test_later_negative_curvature_ends_at_the_last_minimum():
    matrix, b = np.diag([5.0, 4.0, -1.0]), np.array([1.0, 1.0, 0.1])

    found, n_products = counted(matrix, b, 3)

    assert found.negative_curvature and n_products == 3
    krylov = np.stack([b, matrix @ b], axis=1)
    minimum = krylov @ np.linalg.solve(krylov.T @ matrix @ krylov, krylov.T @ b)
    np.testing.assert_allclose(found.solution, minimum, rtol=0, atol=1e-12)


@given(n=st.integers(1, 8), k=st.integers(1, 8), seed=SEEDS)
def test_the_answer_points_along_the_gradient_for_any_symmetric_matrix(n, k, seed):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(n, n))
    b = rng.normal(size=n)
    matrix = matrix + matrix.T

    found = solve(matrix, b, k)

    assert float(found.solution @ torch.tensor(b)) > 0
    if found.negative_curvature:
        assert np.linalg.eigvalsh(matrix)[0] < 1e-12


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(bad):
    with pytest.raises(TrainingError, match=rf"squared gradient norm is {bad}, expected a finite number"):
        solve(np.eye(2), np.array([1.0, bad]), 3)
    with pytest.raises(TrainingError, match=rf"curvature along the direction is {bad}, expected a finite number"):
        solve(np.diag([1.0, bad]), np.array([1.0, 1.0]), 3)
