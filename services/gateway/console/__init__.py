"""The console: pages for a browser, on NiceGUI, in the gateway's process."""
