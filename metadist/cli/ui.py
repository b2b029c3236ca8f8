"""`metadist ui`: MLflow's pages on the job's own store."""

from __future__ import annotations

import typer

from metadist.errors import UserError
from metadist.tracking import TrackingConfig, resolve_uri


def ui_command(
    uri: str | None = typer.Option(None, help="Tracking URI; MLFLOW_TRACKING_URI or ./mlflow.db without it."),
    port: int = typer.Option(5000, help="Port to listen on."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on."),
) -> None:
    """Open MLflow on the store that runs are tracked in."""
    from metadist.tracking.ui import serve_ui

    resolved = resolve_uri(TrackingConfig(uri=uri))
    if resolved is None:
        raise UserError("--uri", "none", "the address of a tracking store", "Tracking is switched off.")
    typer.echo(f"MLflow on http://{host}:{port} (Ctrl-C ends it)")
    raise typer.Exit(serve_ui(resolved, port, host))
