#!lua
-- Count an explicit failure. ARGV: task, incarnation, number, entry, consumer, max_failures, dead letter.
-- Returns 0 if the sending is closed or this worker no longer holds the entry (nothing is counted), 1 if the
-- failure was counted and the entry given back, 2 if the task was dead-lettered.
local task, incarnation, number = digits(1, 'task'), digits(2, 'incarnation'), digits(3, 'number')
local entry, consumer = entry_id(4), payload(5, 'consumer')
local max_failures, letter = tonumber(digits(6, 'max_failures')), payload(7, 'dead letter')
check_types()
ensure_group()
local failures = open_failures(task, incarnation, number, entry)
if not failures then
  acknowledge(entry)
  trim()
  return 0
end
local pending = pending_of(entry)
if not pending or pending.consumer ~= consumer then
  return 0
end
if failures + 1 >= max_failures then
  close(task, incarnation, number, entry, letter)
  return 2
end
store_sending(task, incarnation, number, failures + 1, entry)
give_back(entry, pending.deliveries)
return 1
