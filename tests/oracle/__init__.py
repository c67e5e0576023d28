"""The independent reference: a naive hybrid decoding loop and the tiny random models that tests run it on."""
