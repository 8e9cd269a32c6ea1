"""What an optimiser asks of a model: its trainable parameters, its linear layers and its Jacobian, by the cheapest exact route."""

from torch import nn

from clipkal.optim.model.bilinear import BilinearRoute
from clipkal.optim.model.jacobian import FunctionalRoute, JacobianRoute, ParameterVector
from clipkal.optim.model.layers import HookRoute, warn_slow

ROUTES: dict[str, type[JacobianRoute]] = {
    "bilinear": BilinearRoute,
    "hooks": HookRoute,
    "func": FunctionalRoute,
}
"""The cheapest first."""


def make_route(
    model: nn.Module, vector: ParameterVector, route: str = "auto", memory: int = 1 << 28
) -> JacobianRoute:
    """The route of this name in `ROUTES`, or the cheapest that fits the model ("auto").

    memory: bytes that the rows of a Jacobian may take at once. Raises ValueError for another name, or if the route
    asked for does not fit; a warning where only the slow one fits.
    """
    if route != "auto" and route not in ROUTES:
        raise ValueError(f"unknown route {route!r}; one of auto, {', '.join(ROUTES)}")
    for name, kind in ROUTES.items():
        if route in ("auto", name) and kind.fits(model, vector):
            if route == "auto" and kind is FunctionalRoute:
                names = HookRoute.outside(model, vector)
                warn_slow(f"no nn.Linear holds {', '.join(names[:3])}{' …' if len(names) > 3 else ''}")
            return kind(model, vector, memory)
    raise ValueError(f"route {route!r} needs {ROUTES[route].needs}")
