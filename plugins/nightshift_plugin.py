"""What Nightshift adds to Airflow: it writes failures down, and shows the person on call what to do about them."""

from urllib.parse import urlsplit

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

from nightshift.failures import listener
from nightshift.operations.page import ROUTE, app


class NightshiftPlugin(AirflowPlugin):
    """The listener, and the page "Nightshift" in the navigation."""

    name = "nightshift"
    listeners = [listener]  # noqa: RUF012 - the base class declares it so
    fastapi_apps = [{"app": app, "url_prefix": ROUTE, "name": "Nightshift"}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        {
            "name": "Nightshift",
            "href": f"{urlsplit(conf.get('api', 'base_url', fallback='')).path.rstrip('/')}{ROUTE}/",
            "destination": "nav",
            "nav_top_level": True,
            "url_route": "nightshift",
        }
    ]
