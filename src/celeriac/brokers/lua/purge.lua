-- Deletes what waits in a queue, and what is delayed. UNLINK frees the memory beside, however much it is.
--
-- ARGV  4 queue   5... steps
-- Returns how many messages there were.

tend(time())
local delayed = PREFIX .. 'celeriac:delayed:' .. ARGV[4]
local count = call('ZCARD', delayed)
call('UNLINK', delayed)
call('ZREM', DELAYED, ARGV[4])
for i = 5, #ARGV do
  local list = list_of(ARGV[4], ARGV[i])
  count = count + call('LLEN', list)
  call('UNLINK', list)
end
return count
