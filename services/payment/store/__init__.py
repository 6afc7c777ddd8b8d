"""The payment service's SQL: functions over one open transaction, composed by `transactions`."""
