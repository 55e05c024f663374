#!lua
-- Open a new sending of each task, which closes an older one. ARGV: owner, then (task, minimum number, prompt).
-- Returns the numbers of the sendings.
for i = 2, #ARGV, 3 do
  digits(i, 'task')
  digits(i + 1, 'number')
  payload(i + 2, 'prompt')
end
check_types()
check_fence()
ensure_group()
local incarnation = string.match(ARGV[1], '^%d+')
local numbers = {}
for i = 2, #ARGV, 3 do
  local task, number = ARGV[i], tonumber(ARGV[i + 1])
  local open = stored_sending(task)
  if open and open.incarnation == incarnation and tonumber(open.number) >= number then
    number = tonumber(open.number) + 1
  end
  number = string.format('%d', number)
  local entry = redis.call('XADD', PROMPTS, '*',
    'task', task, 'incarnation', incarnation, 'number', number, 'prompt', ARGV[i + 2])
  store_sending(task, incarnation, number, 0, entry)
  numbers[#numbers + 1] = tonumber(number)
end
return numbers
