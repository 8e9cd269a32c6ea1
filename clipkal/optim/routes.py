"""Which route to the Jacobian a model takes."""

from torch import nn

from clipkal.optim.hooks import HookRoute, warn_slow
from clipkal.optim.jacobian import BilinearRoute, FunctionalRoute, JacobianRoute
from clipkal.optim.vector import ParameterVector


def make_route(
    model: nn.Module, vector: ParameterVector, route: str = "auto", memory: int = 1 << 28
) -> JacobianRoute:
    """The route called `bilinear`, `hooks` or `func`, or the cheapest that fits (`auto`).

    memory: bytes that the rows of a Jacobian may take at once. ValueError if the route asked for does not fit; a
    warning where only the slow one fits.
    """
    if route == "auto":
        fits = {"bilinear": BilinearRoute.fits(model, vector), "hooks": HookRoute.fits(model, vector)}
        route = next((name for name, does in fits.items() if does), "func")
        if route == "func":
            names = HookRoute.outside(model, vector)
            warn_slow(f"no nn.Linear holds {', '.join(names[:3])}{' …' if len(names) > 3 else ''}")
    if route == "bilinear":
        if not BilinearRoute.fits(model, vector):
            raise ValueError(
                "the bilinear route needs a BilinearModel that trains only weight (and log_scale)"
            )
        return BilinearRoute(model, vector)
    if route == "hooks":
        if not HookRoute.fits(model, vector):
            raise ValueError("the hook route needs a model that trains only nn.Linear layers (and log_scale)")
        return HookRoute(model, vector, memory)
    if route == "func":
        return FunctionalRoute(model, vector, memory)
    raise ValueError(f"unknown route {route!r}; one of auto, bilinear, hooks, func")
