"""Check the components of a plugin, and provide toy components that need no other plugin.

    from sddit.testing import check_plugin

    def test_my_loss() -> None:
        check_plugin("my_loss.py")

`check_plugin` checks every component of a plugin with its default settings; `check` checks one, with settings of your
choice. Both raise `ConformanceError` with everything they found.
"""

from sddit.testing.kit import ConformanceError, check, check_plugin
from sddit.testing.toys.plugin import TOY_PAIR_RECIPE, TOY_RECIPE, toy_host

__all__ = ["TOY_PAIR_RECIPE", "TOY_RECIPE", "ConformanceError", "check", "check_plugin", "toy_host"]
