"""Where jobs run: processes, containers, Kubernetes; all keep to `base.Launcher`."""
