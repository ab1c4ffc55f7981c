"""For authors of plugins: the conformance kit `check`, and toy components that need no other plugin.

from sddit.testing import check

def test_my_loss() -> None:
    check("./my_loss.py", "my_loss")
"""
