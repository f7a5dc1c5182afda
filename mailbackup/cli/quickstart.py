"""x"""
import typer
def register(root: typer.Typer) -> None:
    """x"""
