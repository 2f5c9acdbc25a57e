"""Prometheus metrics with bounded labels: no tenant, prefix or request ever becomes a label."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.engine.engine import Engine
from app.runtime.prefix_cache import PrefixCache
from app.tenancy.limits.limiter import Limiter

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one app; `render` gives the text that Prometheus scrapes."""

    def __init__(self, engine: Engine, tiers: PrefixCache, limiter: Limiter) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(engine, tiers, limiter))
        self.http_requests = Counter(
            "polyprefix_http_requests",
            "HTTP requests by route template, method and status",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self.http_seconds = Histogram(
            "polyprefix_http_request_duration_seconds",
            "Time from a request's head to the end of its reply",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.queue_seconds = Histogram(
            "polyprefix_queue_time_seconds",
            "Time from submission to the engine until a request's rows start",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.first_token_seconds = Histogram(
            "polyprefix_time_to_first_token_seconds",
            "Time from submission to the engine until a request's first token",
            buckets=_SECONDS,
            registry=self._registry,
        )

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)


class _Collector(Collector):
    """Reads the parts' own figures when they are scraped."""

    def __init__(self, engine: Engine, tiers: PrefixCache, limiter: Limiter) -> None:
        self._engine, self._tiers, self._limiter = engine, tiers, limiter

    def collect(self) -> Iterable[Metric]:
        """Gauges and counters, made afresh."""
        progress, counters = self._engine.progress(), self._engine.counters
        gauges = {
            "polyprefix_rows_running": ("Rows being computed", progress.running),
            "polyprefix_requests_waiting": ("Requests that have no rows yet", progress.waiting),
            "polyprefix_tenants_waiting": (
                "Tenants with requests that have no rows yet",
                self._engine.admission.figures.num_waiting_tenants,
            ),
            "polyprefix_kv_bytes": (
                "Memory allocated for keys and values",
                self._engine.kv_bytes,
            ),
            "polyprefix_engine_alive": ("1 while the engine's thread runs", progress.alive),
            "polyprefix_limiter_degraded": (
                "1 while Redis fails and each replica applies the limits by itself",
                self._limiter.is_degraded,
            ),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=float(value))
        totals = {
            "polyprefix_engine_steps": ("Forward passes", counters.steps),
            "polyprefix_engine_step_seconds": ("Time spent in steps", counters.step_seconds),
            "polyprefix_prompt_tokens": ("Prompt tokens computed", counters.prompt_tokens),
            "polyprefix_generated_tokens": ("Tokens sampled", counters.generated_tokens),
            "polyprefix_requests_finished": ("Requests that ended well", counters.finished),
            "polyprefix_requests_failed": ("Requests that ended with an error", counters.failed),
            "polyprefix_limiter_faults": (
                "Calls of Redis and attempts to reach it that failed",
                self._limiter.faults,
            ),
        }
        for name, (text, total) in totals.items():
            yield CounterMetricFamily(name, text, value=float(total))
        yield from self._collect_tiers()

    def _collect_tiers(self) -> Iterable[Metric]:
        stats = self._tiers.stats()
        for field, text in (("entries", "Prefixes held"), ("nbytes", "Bytes of prefixes held")):
            gauge = GaugeMetricFamily(f"polyprefix_prefix_tier_{field}", text, labels=["tier"])
            for tier, figures in stats.items():
                gauge.add_metric([tier], float(getattr(figures, field)))
            yield gauge
        for field in ("hits", "misses", "evictions"):
            counter = CounterMetricFamily(
                f"polyprefix_prefix_tier_{field}", f"Prefix {field} by tier", labels=["tier"]
            )
            for tier, figures in stats.items():
                counter.add_metric([tier], float(getattr(figures, field)))
            yield counter
