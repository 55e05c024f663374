"""Rules, alerts and dashboards for Prometheus and Grafana; `python -m monitoring` writes what is generated.

`rules.yaml` is kept by hand, with its tests; the PrometheusRule and the dashboards of
k8s/components/monitoring are written from it and from `boards`. Nothing of the product imports it.
"""
