-- Counts the messages that wait to be delivered now.
--
-- ARGV  4 queue   5... steps

local now = time()
tend(now)
local count = call('ZCOUNT', PREFIX .. 'celeriac:delayed:' .. ARGV[4], '-inf', now)
for i = 5, #ARGV do
  count = count + call('LLEN', list_of(ARGV[4], ARGV[i]))
end
return count
