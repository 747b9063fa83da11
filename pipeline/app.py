"""The Faust app: `faust -A pipeline.app worker`, or `tally worker`, which is the same.

An agent takes batches from the consumer to the sessions; a table keeps the first sightings; three pages tell how the
worker is. What a block is and when it counts is in `pipeline.session`.
"""

from typing import Any

from faust.web import Request, Response, View

from pipeline.adapters.faust_bridge import App
from pipeline.logs import configure_logs
from pipeline.memory import keep_memory_together
from pipeline.settings import Settings
from pipeline.worker import Worker


class TallyApp(App):
    """The app with its worker, which begins before Faust's services and ends before them."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.worker = Worker(self, settings)

    async def on_first_start(self) -> None:
        await self.worker.start()
        await super().on_first_start()

    async def on_stop(self) -> None:
        await self.worker.stop()
        await super().on_stop()


def create_app(settings: Settings) -> TallyApp:
    """The app for these settings; nothing is connected yet."""
    app = TallyApp(settings)
    # acks=False: offsets are committed by the sessions, never by Faust
    topic = app.topic(settings.topic_events, value_type=bytes, key_type=bytes, acks=False)
    app.Table("dedup", key_type=bytes, value_type=bytes, partitions=settings.partitions)

    @app.agent(topic, name="count")
    async def count(stream: Any) -> None:
        async for batch in stream:
            app.worker.deliver(batch)

    @app.on_partitions_assigned.connect
    async def assigned(app: TallyApp, assigned: set[Any], **_: Any) -> None:
        await app.worker.take(tp.partition for tp in assigned if tp.topic == settings.topic_events)

    @app.on_partitions_revoked.connect
    async def revoked(app: TallyApp, revoked: set[Any], **_: Any) -> None:
        await app.worker.release()

    @app.page("/livez")
    async def livez(web: View, request: Request) -> Response:
        return web.text("ok\n")

    @app.page("/readyz")
    async def readyz(web: View, request: Request) -> Response:
        reasons = app.worker.not_ready()
        return web.json({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    @app.page("/metrics")
    async def metrics(web: View, request: Request) -> Response:
        return web.bytes(app.worker.metrics.text(), content_type="text/plain; version=0.0.4")

    return app


def __getattr__(name: str) -> TallyApp:
    """`app`, made when Faust asks for it: importing this module reads no settings."""
    if name != "app":
        raise AttributeError(name)
    keep_memory_together()
    settings = Settings()
    configure_logs(settings)
    globals()["app"] = create_app(settings)
    made: TallyApp = globals()["app"]
    return made
